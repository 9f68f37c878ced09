"""How many keys and queries a call has."""

from typing import NamedTuple


class Extent(NamedTuple):
    """Tokens of either side; the queries are the last of them."""

    queries: int
    keys: int

    @property
    def before(self) -> int:
        """Keys that come before the first query."""
        return self.keys - self.queries
