"""Causal softmax attention for the baselines: linear memory, on any platform."""

from pallas_kernels.attention.api import causal_attention
from pallas_kernels.attention.decode import decode_attention

__all__ = ["causal_attention", "decode_attention"]
