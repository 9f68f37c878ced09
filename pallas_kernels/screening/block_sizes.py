"""Block sizes of the kernels."""
from typing import NamedTuple


class Blocks(NamedTuple):
    rows: int
    columns: int
    strip: int
    staged: bool = False


class TpuBlocks(NamedTuple):
    forward: Blocks
    queries: Blocks
    keys: Blocks

    @property
    def multiple(self):
        return max(max(x.rows, x.columns) for x in self)


def tpu_blocks(length, key_dim, value_dim, exact):
    rows = columns = 128
    b = Blocks(rows, columns, 128)
    return TpuBlocks(b, b, b)
