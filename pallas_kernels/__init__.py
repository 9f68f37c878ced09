"""Hot loops of sequence mixers as pure functions on arrays.

Every op has one public function and several implementations behind it: `reference` (the clearest
form, the oracle), `chunked` (matmuls inside blocks, linear memory, fast everywhere), and, where
they exist, Pallas kernels for TPU and GPU. This package imports jax and numpy only.
"""

from pallas_kernels.common.dispatch import interpret_kernels
from pallas_kernels.linear_attention import (
    delta_rule,
    gated_delta_rule,
    linear_attention,
    retention,
    ssd,
)
from pallas_kernels.log_linear import log_linear_gated_delta_rule, log_linear_ssd
from pallas_kernels.screening import screening

__all__ = [
    "delta_rule",
    "gated_delta_rule",
    "interpret_kernels",
    "linear_attention",
    "log_linear_gated_delta_rule",
    "log_linear_ssd",
    "retention",
    "screening",
    "ssd",
]
