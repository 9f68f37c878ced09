"""Log-linear attention: a state for every level of a Fenwick tree."""

from functools import partial

from pallas_kernels.common.sharding import over_sequence
from pallas_kernels.linear_attention import without_states
from pallas_kernels.log_linear import api, parallel
from pallas_kernels.log_linear.levels import LogLinearState, empty_state, level_count


def _applies(given, share: int) -> bool:
    """Levels count from the start of a document, which shares have to be aligned to."""
    packed = given.get("segment_ids") is not None
    return without_states(given, share) and not packed and share & (share - 1) == 0


_over_sequence = partial(
    over_sequence,
    in_axes={
        "q": "btg.", "k": "btg.", "v": "bth.", "g": "bth", "beta": "bth", "level_scales": "bth.",
        "segment_ids": "bt",
    },
    out_axes=("bth.", "bh..."),
    applies=_applies,
)  # fmt: skip
log_linear_ssd = _over_sequence(api.log_linear_ssd, parallel.log_linear_ssd)
log_linear_gated_delta_rule = _over_sequence(
    api.log_linear_gated_delta_rule, parallel.log_linear_gated_delta_rule
)

__all__ = [
    "LogLinearState",
    "empty_state",
    "level_count",
    "log_linear_gated_delta_rule",
    "log_linear_ssd",
]
