"""Fields of log-linear models, "Log-Linear Attention" (arXiv:2506.04761)."""

import dataclasses
from typing import Self


@dataclasses.dataclass(frozen=True, kw_only=True)
class Levels:
    """What a config adds to that of its parent model.

    Attributes:
        num_levels: L; documents of 2^(L-1) tokens fit.
        beyond_levels: what longer ones do: "error" (NaN where the length is known only at run
            time), "clamp" or "extend", see `pallas_kernels.log_linear_ssd`.
        max_documents: a packed row may hold; one that holds more is NaN. Each costs up to a chunk.
    """

    num_levels: int = 15
    beyond_levels: str = "error"
    max_documents: int = 8

    def for_one_document(self) -> Self:
        """The same where no row holds more: the ops pay for the room that more could need."""
        return dataclasses.replace(self, max_documents=1)
