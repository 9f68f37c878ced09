"""Log-linear attention: a state for every level of a Fenwick tree."""

from pallas_kernels.log_linear.api import log_linear_gated_delta_rule, log_linear_ssd
from pallas_kernels.log_linear.levels import LogLinearState, empty_state, level_count

__all__ = [
    "LogLinearState",
    "empty_state",
    "level_count",
    "log_linear_gated_delta_rule",
    "log_linear_ssd",
]
