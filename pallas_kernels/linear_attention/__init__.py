"""Linear attention, retention, SSD and the delta rules: one state per head."""

from functools import partial

from pallas_kernels.common.sharding import over_sequence
from pallas_kernels.linear_attention import api, parallel
from pallas_kernels.linear_attention.api import NormalizedState, retention_decays

_TOKENS = {"q": "btg.", "k": "btg.", "v": "bth.", "beta": "bth", "segment_ids": "bt"}


def without_states(given, share: int) -> bool:
    """Whether no state is given to an op or asked of it, as in training."""
    del share
    return given.get("initial_state") is None and not given.get("return_state")


_over_sequence = partial(
    over_sequence,
    in_axes={**_TOKENS, "g": "bth"},
    out_axes=("bth.", "bh.."),
    applies=without_states,
)
linear_attention = _over_sequence(api.linear_attention, parallel.linear_attention)
# Decays that are not given follow from the number of heads, which a device has a share of.
retention = _over_sequence(
    api.retention,
    parallel.retention,
    in_axes={**_TOKENS, "g": "h"},
    applies=lambda given, share: without_states(given, share) and given.get("g") is not None,
)
ssd = _over_sequence(api.ssd, parallel.ssd)
delta_rule = _over_sequence(api.delta_rule, parallel.delta_rule)
gated_delta_rule = _over_sequence(api.gated_delta_rule, parallel.gated_delta_rule)

__all__ = [
    "NormalizedState",
    "delta_rule",
    "gated_delta_rule",
    "linear_attention",
    "retention",
    "retention_decays",
    "ssd",
]
