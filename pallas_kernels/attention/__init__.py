"""Causal softmax attention for the baselines: linear memory, on any platform."""

from pallas_kernels.attention import api, parallel
from pallas_kernels.attention.decode import decode_attention
from pallas_kernels.common.sharding import over_sequence

causal_attention = over_sequence(
    api.causal_attention,
    parallel.causal_attention,
    in_axes={"q": "bth.", "k": "btg.", "v": "btg.", "segment_ids": "bt"},
    out_axes="bth.",
    applies=lambda given, share: given["q"].shape[1] == given["k"].shape[1],
)

__all__ = ["causal_attention", "decode_attention"]
