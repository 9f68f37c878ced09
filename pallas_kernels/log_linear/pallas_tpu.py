"""Log-linear ops on TPUs: the kernels of `linear_attention.tpu_walk`, with levels."""

import jax
from jaxtyping import Array, Float

from pallas_kernels.common.documents import Documents
from pallas_kernels.linear_attention.pallas_tpu import walk
from pallas_kernels.linear_attention.tpu_chunks import CHUNK
from pallas_kernels.log_linear.chunked import log_linear_chunked
from pallas_kernels.log_linear.levels import LogLinearState
from pallas_kernels.log_linear.maps import Inputs
from pallas_kernels.log_linear.walks import levels_walk


def log_linear_pallas_tpu(
    inputs: Inputs,
    state: LogLinearState,
    continues: bool,
    return_state: bool,
    documents: Documents | None,
    max_documents: int,
    precision: jax.lax.PrecisionLike,
) -> tuple[Float[Array, "B T H V"], LogLinearState]:
    """`log_linear_ssd`, or with `beta` `log_linear_gated_delta_rule`, as Pallas kernels.

    Products, dtypes and refusals are those of `linear_attention.pallas_tpu`. One pass over the
    tokens, whatever the number of levels: states stay in vector memory, H J K V numbers of each
    group of heads.
    """
    return log_linear_chunked(
        inputs, state, continues, documents, CHUNK, max_documents, precision,
        levels_walk(walk, CHUNK, precision), return_state,
    )  # fmt: skip
