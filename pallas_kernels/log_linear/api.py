"""The public log-linear ops."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from pallas_kernels.common import dispatch
from pallas_kernels.common.arguments import (
    array,
    check_not_negative,
    check_positive_integer,
    optional_array,
    scale_number,
)
from pallas_kernels.common.documents import Documents, document_starts, documents, mask_padding
from pallas_kernels.common.numerics import accumulation_dtype
from pallas_kernels.common.sharding import shard_op
from pallas_kernels.linear_attention import pallas_gpu, pallas_tpu
from pallas_kernels.linear_attention.api import (
    check_inputs,
    check_settings,
    repeat_groups,
    scale_queries,
    widen,
    without_padding,
)
from pallas_kernels.log_linear import step_gpu, step_tpu
from pallas_kernels.log_linear.chunked import log_linear_chunked
from pallas_kernels.log_linear.levels import (
    BEYOND_LEVELS,
    LogLinearState,
    empty_state,
    level_count,
)
from pallas_kernels.log_linear.maps import Inputs
from pallas_kernels.log_linear.reference import log_linear_recurrence
from pallas_kernels.log_linear.step import log_linear_step
from pallas_kernels.log_linear.tree import log_linear_tree
from pallas_kernels.log_linear.walks import levels_walk


def log_linear_ssd(
    q: Float[Array, "B T G K"],
    k: Float[Array, "B T G K"],
    v: Float[Array, "B T H V"],
    g: Float[Array, "B T H"],
    level_scales: Float[Array, "B T H L"],
    beyond_levels: str = "error",
    *,
    scale: float | None = None,
    initial_state: LogLinearState | None = None,
    return_state: bool = False,
    segment_ids: Int[Array, "B T"] | None = None,
    max_documents: int | None = None,
    chunk_size: int = 64,
    implementation: str | Sequence[str] | None = None,
    precision: jax.lax.PrecisionLike = None,
) -> tuple[Float[Array, "B T H V"], LogLinearState | None]:
    """Log-linear SSD (Log-Linear Mamba-2, arXiv:2506.04761, section 3.3).

        y_t = scale sum_{s <= t} lambda_t[level(t, s)] exp(g_{s+1} + ... + g_t) (k_s . q_t) v_s

    level(t, s) = bit_length(t xor s): the token itself is level 0, and the further back, the
    coarser. With all level scales equal to one it is `ssd`, whose arguments q, k, v, g,
    chunk_size, implementation and precision it shares.

    Args:
        level_scales: lambda, a weight for every level, of any sign, by reading token.
        beyond_levels: L levels hold 2^(L-1) tokens. For longer documents:
            "error"   ValueError; in packed rows and after an initial state, whose lengths are
                      known only at run time, the row is NaN.
            "clamp"   what is older than the last but one level stays merged in the last.
            "extend"  levels beyond take the last one's scale and stay apart in the state, which
                      has as many as T needs, or as the initial state has; NaN beyond those.
            The results of "clamp" and "extend" are the same; the states differ.
        scale: of q; None is 1.
        initial_state: of any length >= 0, continued by the row's first document. A negative
            length is refused where it can be seen, outside jit; inside, it means nothing. Levels
            that a state of its length leaves empty must be zero. Only "reference" always has a
            gradient for them; in kernels, and in parts of "chunked", it is zero.
        return_state: also return the state after the last token that is not padding.
        segment_ids: documents count from 1; levels and state start anew with each. 0 is padding.
        max_documents: a row may hold (the first one, if it continues a state, included); each
            takes up to C - 1 empty places. None counts them, which needs concrete `segment_ids`.
            A row that holds more is NaN, its state too.
        chunk_size: a power of two.

    Returns:
        y [B,T,H,V] in the dtype of v, and the state in `promote_types(dtype, float32)`, or None.
        Differentiable in every float input.

    Cost: "chunked" takes 2 T H (C K + C V + K V (1 + log2(T / C) / 2)) FLOPs forward for whole
    sequences; for others it reads every level above log2(C), at 2 T H K V each. Beside inputs and
    result, training keeps H K V log2(T / C) numbers for every 8 chunks (whole sequences) or 4.
    Kernels read and move on the levels that hold something, about half, with states on chip (TPU)
    or in cache (GPU). On TPUs training keeps H K V log2(T / C) numbers for every 4 chunks of 128,
    for every 8 where there are more than five levels above C and memory has room, in the inputs'
    dtype.
    """
    return _run(
        "log_linear_ssd", q, k, v, g, None, level_scales, beyond_levels,
        scale=scale, initial_state=initial_state, return_state=return_state,
        segment_ids=segment_ids, max_documents=max_documents, chunk_size=chunk_size,
        implementation=implementation, precision=precision,
    )  # fmt: skip


def log_linear_gated_delta_rule(
    q: Float[Array, "B T G K"],
    k: Float[Array, "B T G K"],
    v: Float[Array, "B T H V"],
    g: Float[Array, "B T H"],
    beta: Float[Array, "B T H"],
    level_scales: Float[Array, "B T H L"],
    beyond_levels: str = "error",
    *,
    scale: float | None = None,
    initial_state: LogLinearState | None = None,
    return_state: bool = False,
    segment_ids: Int[Array, "B T"] | None = None,
    max_documents: int | None = None,
    chunk_size: int = 64,
    implementation: str | Sequence[str] | None = None,
    precision: jax.lax.PrecisionLike = None,
) -> tuple[Float[Array, "B T H V"], LogLinearState | None]:
    """The log-linear gated delta rule (Log-Linear Gated DeltaNet, arXiv:2506.04761, section 3.4).

        A_t = exp(g_t) (I - beta_t k_t k_t^T)
        y_t = scale sum_{s <= t} lambda_t[level(t, s)] q_t^T A_t A_{t-1} ... A_{s+1} k_s beta_s v_s

    With all level scales equal to one it is `gated_delta_rule`, but that `scale=None` is 1. The
    other arguments, the result and the errors are those of `log_linear_ssd`.

    Cost: "chunked" takes, for each level above log2(C), T H K V FLOPs in whole sequences and
    6 T H K V in others, beside what the `gated_delta_rule` takes inside chunks; memory is that of
    `log_linear_ssd`.
    """
    return _run(
        "log_linear_gated_delta_rule", q, k, v, g, array("beta", beta), level_scales, beyond_levels,
        scale=scale, initial_state=initial_state, return_state=return_state,
        segment_ids=segment_ids, max_documents=max_documents, chunk_size=chunk_size,
        implementation=implementation, precision=precision,
    )  # fmt: skip


def _reference(q, k, v, g, beta, scales, state, docs, *, scale, **unused):
    del unused
    q, k, v, g, beta, scales = widen(q, k, v, g, beta, scales, scale=scale)
    q, k = repeat_groups(q, k, v)
    return log_linear_recurrence(q, k, v, g, beta, scales, state, docs)


def _chunked(
    q, k, v, g, beta, scales, state, docs, *,
    scale, continues, return_state, chunk_size, max_documents, precision,
):  # fmt: skip
    q, k, v, g, beta, scales = widen(q, k, v, g, beta, scales, scale=scale)
    q, k = repeat_groups(q, k, v)
    inputs = Inputs(q, k, v, g, beta, scales)
    chunk_size = min(chunk_size, 1 << (v.shape[1] - 1).bit_length())
    if docs is None and not continues and not return_state:
        return log_linear_tree(inputs, chunk_size, precision), state
    if v.shape[1] == 1:
        return log_linear_recurrence(q, k, v, g, beta, scales, state, docs, precision)
    return log_linear_chunked(
        inputs, state, continues, docs, chunk_size, max_documents, precision
    )  # fmt: skip


def _by_walk(walk, walk_chunk, step):
    """By a kernel that walks over chunks of `walk_chunk` tokens, and one for a single token."""

    def run(
        q, k, v, g, beta, scales, state, docs, *,
        scale, continues, return_state, chunk_size, max_documents, precision,
    ):  # fmt: skip
        del chunk_size
        inputs = Inputs(scale_queries(q, scale), k, v, g, beta, scales)
        if v.shape[1] == 1:
            return log_linear_step(step, inputs, state, docs)
        return log_linear_chunked(
            inputs, state, continues, docs, walk_chunk, max_documents, precision,
            levels_walk(walk, walk_chunk, precision), return_state,
        )  # fmt: skip

    return run


_AVAILABLE = {
    "reference": _reference,
    "chunked": _chunked,
    "pallas_tpu": _by_walk(pallas_tpu.walk, pallas_tpu.CHUNK, step_tpu.step),
    "pallas_gpu": _by_walk(pallas_gpu.walk, pallas_gpu.CHUNK, step_gpu.step),
}


def _run(
    name, q, k, v, g, beta, scales, beyond_levels, *,
    scale, initial_state, return_state, segment_ids, max_documents, chunk_size, implementation,
    precision,
) -> tuple[Array, LogLinearState | None]:  # fmt: skip
    named = {"q": q, "k": k, "v": v, "g": g, "level_scales": scales}
    q, k, v, g, scales = (array(name, x) for name, x in named.items())
    beta = optional_array("beta", beta)
    check_inputs(q, k, v, g=g, beta=beta, level_scales=scales, segment_ids=segment_ids)
    scale = scale_number(scale)
    check_settings(chunk_size, precision, return_state)
    if chunk_size & (chunk_size - 1):
        raise ValueError(f"chunk_size must be a power of two for levels, got {chunk_size}")
    if scales.ndim != 4 or not scales.shape[3]:
        raise ValueError(f"level_scales must be [B,T,H,L] with L >= 1, got {scales.shape}")
    if beyond_levels not in BEYOND_LEVELS:
        raise ValueError(
            f"beyond_levels must be one of {', '.join(BEYOND_LEVELS)}, got {beyond_levels!r}"
        )
    if initial_state is not None:
        initial_state = _state_arrays(initial_state)
    batch, length, heads, value_dim = v.shape
    dtype = accumulation_dtype(q, k, v)
    scales, levels = _levels(
        scales, beyond_levels, length, initial_state, packed=segment_ids is not None
    )
    state = empty_state(batch, heads, levels, q.shape[3], value_dim, dtype)
    if initial_state is not None:
        state = _check_state(initial_state, state)
    max_documents = _max_documents(max_documents, segment_ids)

    def op(q, k, v, g, beta, scales, matrices, lengths, segment_ids):
        docs = None if segment_ids is None else documents(segment_ids)
        out_dtype = v.dtype
        q, k, v, g, beta, scales = without_padding(docs, q, k, v, g, beta, scales)
        y, state = dispatch.run(
            name, _AVAILABLE, implementation, q, k, v, g, beta, scales,
            LogLinearState(matrices, lengths), docs,
            scale=1.0 if scale is None else scale,
            continues=initial_state is not None, return_state=return_state,
            chunk_size=chunk_size, max_documents=max_documents, precision=precision,
        )  # fmt: skip
        if beyond_levels != "clamp" and (initial_state is not None or docs is not None):
            full = _longest(docs, lengths, length) > 2 ** min(levels - 1, 30)
            y = jnp.where(full[:, None, None, None], jnp.nan, y)
        if docs is not None:
            (y,) = mask_padding(docs.real, y)
        return y.astype(out_dtype), state.levels, state.length

    in_axes = ("b.g.", "b.g.", "b.h.", "b.h", "b.h", "b.h.", "bh...", "b", "b.")
    segment_ids = None if segment_ids is None else jnp.asarray(segment_ids)
    y, *state = shard_op(
        op, in_axes, ("b.h.", "bh...", "b"),
        q, k, v, g, beta, scales, state.levels, state.length, segment_ids,
    )  # fmt: skip
    return y, LogLinearState(*state) if return_state else None


def _levels(
    scales: Array, beyond_levels: str, length: int, state: LogLinearState | None, packed: bool
) -> tuple[Array, int]:
    """The level scales by the policy, and the levels of the state."""
    given, needed = scales.shape[3], level_count(length)
    if beyond_levels == "error" and needed > given and not packed:
        raise ValueError(
            f"{given} levels hold {2 ** (given - 1)} tokens, got {length}; give {needed} level "
            'scales, or beyond_levels="clamp" or "extend"'
        )
    if beyond_levels != "extend":
        return scales, given
    wanted = max(given, needed if state is None else state.levels.shape[2])
    if needed > wanted and not packed:
        raise ValueError(
            f"the initial state has {wanted} levels, which hold {2 ** (wanted - 1)} tokens, and "
            f"{length} more came: start from a state with more levels (they may be zero)"
        )
    last = jnp.broadcast_to(scales[..., -1:], (*scales.shape[:3], wanted - given))
    return jnp.concatenate([scales, last], axis=-1), wanted


def _longest(docs: Documents | None, start: Int[Array, " B"], length: int) -> Int[Array, " B"]:
    """Tokens of each row's longest document; the first one has `start` before the row."""
    if docs is None:
        return start + length
    tokens = jnp.cumsum(docs.real, axis=1, dtype=jnp.int32)
    before = jnp.where(document_starts(docs), tokens - 1, -start[:, None])
    return jnp.max(tokens - jax.lax.cummax(before, axis=1), axis=1)


def _state_arrays(given: Any) -> LogLinearState:
    if not isinstance(given, tuple) or len(given) != 2:
        raise ValueError(f"initial_state must be a LogLinearState, got a {type(given).__name__}")
    levels, length = (array("initial_state", x) for x in given)
    if levels.ndim != 5 or not jnp.issubdtype(length.dtype, jnp.integer):
        kinds = "levels [B,H,L,K,V] and an integer length [B]"
        got = f"{levels.dtype}{list(levels.shape)} and {length.dtype}{list(length.shape)}"
        raise ValueError(f"initial_state must be {kinds}, got {got}")
    check_not_negative("the length of initial_state", given[1])
    return LogLinearState(levels, length)


def _check_state(given: LogLinearState, empty: LogLinearState) -> LogLinearState:
    levels, length = given
    if levels.shape != empty.levels.shape or length.shape != empty.length.shape:
        raise ValueError(
            f"initial_state must be levels [B,H,L,K,V] = {empty.levels.shape} and length [B] = "
            f"{empty.length.shape}, got {levels.shape} and {length.shape}"
        )
    return LogLinearState(levels.astype(empty.levels.dtype), length.astype(jnp.int32))


def _max_documents(given: int | None, segment_ids: Any) -> int:
    if given is not None:
        check_positive_integer("max_documents", given)
        return int(given)
    if segment_ids is None:
        return 1
    if isinstance(segment_ids, Tracer):
        raise ValueError(
            "under jit, segment_ids need max_documents: how many documents a row may hold at most"
        )
    with jax.ensure_compile_time_eval():  # ids that a jitted function closes over are concrete
        index = np.asarray(documents(jnp.asarray(segment_ids)).index)
    return int(index.max()) + 1
