"""Linear attention, retention, SSD and the delta rules: one state per head."""

from pallas_kernels.linear_attention.api import (
    NormalizedState,
    delta_rule,
    gated_delta_rule,
    linear_attention,
    retention,
    retention_decays,
    ssd,
)

__all__ = [
    "NormalizedState",
    "delta_rule",
    "gated_delta_rule",
    "linear_attention",
    "retention",
    "retention_decays",
    "ssd",
]
