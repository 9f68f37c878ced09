"""Where the keys and queries of a call are."""

from typing import NamedTuple

from jaxtyping import Array, Int


class Extent(NamedTuple):
    """Tokens of either side; the queries are the last of the keys', or come after all of them."""

    queries: int
    keys: int
    apart: bool = False  # the keys and queries of other tokens, with a gap between them

    @property
    def query_segments(self) -> int:
        """Where the documents of the queries start among `segment_ids`."""
        return self.keys if self.apart else self.keys - self.queries

    def before(self, gap: Int[Array, ""] | None) -> Int[Array, ""] | int:
        """Tokens from the first key to the first query."""
        return self.keys - self.queries if gap is None else self.keys + gap


def extent_of(q: Array, k: Array, gap: Int[Array, ""] | None) -> Extent:
    return Extent(q.shape[1], k.shape[1], gap is not None)
