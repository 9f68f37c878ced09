"""One token of the log-linear ops on a TPU: all levels in one pass over the state."""

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from pallas_kernels.common import dispatch
from pallas_kernels.common.documents import Documents
from pallas_kernels.common.tpu import kernel_memory
from pallas_kernels.linear_attention.api import repeat_groups, widen
from pallas_kernels.log_linear.levels import LogLinearState, bit_length
from pallas_kernels.log_linear.maps import Inputs
from pallas_kernels.log_linear.reference import log_linear_recurrence

_STATE_BYTES = 4 * 2**20  # of vector memory, for the states of the heads of one step
_DECAY, _BETA, _SCALES = 0, 1, 2  # rows of a head's numbers


def log_linear_step(
    inputs: Inputs, state: LogLinearState, documents: Documents | None
) -> tuple[Float[Array, "B 1 H V"], LogLinearState]:
    """The result and the state after a single token, T = 1; padding is zero.

        levels 0..z of the state become level z + 1, z the trailing zeros of the token's number
        S_l = exp(g) (S_l - beta k (k^T S_l))       without beta exp(g) S_l
        S_0 = beta k v^T                            y = sum_l lambda_l S_l^T q

    Every state is read once and written once, in float32. (Log-Linear Attention, arXiv:2506.04761,
    section 3.1.) The gradient is that of the recurrence.

    Raises:
      NotImplementedError: the states of a head do not fit into vector memory.
    """
    q, k, v, g, beta, scales = inputs
    dtype = v.dtype
    q, k, v, g, beta, scales = widen(q, k, v, g, beta, scales, scale=1.0)
    real = jnp.ones(len(v), bool) if documents is None else documents.real[:, 0]
    q, k = repeat_groups(q, k, v)
    y, levels = _step(q, k, v, g, beta, scales, state.levels, state.length, real)
    return y.astype(dtype), LogLinearState(levels, state.length + real)


@jax.custom_vjp
def _step(q, k, v, g, beta, scales, levels, length, real):
    batch, heads, count, key_dim, value_dim = levels.shape
    # Keys or values lie on lanes, whichever fill them better: so the states lie in device memory.
    keys_last = _lanes(key_dim) * value_dim < _lanes(value_dim) * key_dim
    shape = (value_dim, key_dim) if keys_last else (key_dim, value_dim)
    head_bytes = count * shape[0] * _lanes(shape[1]) * 4
    needed = 4 * head_bytes + 2**20  # in and out, both twice
    if needed > kernel_memory():
        raise NotImplementedError(
            f"{count} states of K={key_dim}, V={value_dim} need {needed / 2**20:.1f} MiB of vector "
            f"memory, and kernels may use {kernel_memory() / 2**20:.1f} MiB"
        )
    most = max(1, _STATE_BYTES // head_bytes)
    block = max(n for n in range(1, heads + 1) if heads % n == 0 and n <= most)
    zeros = jnp.maximum(bit_length(length & -length) - 1, 0)
    # Levels below `emptied` become one with level `target`; nothing precedes a first token.
    emptied = jnp.where(length > 0, jnp.minimum(zeros + 1, count - 1), 0)
    target = jnp.where(length > 0, jnp.minimum(zeros + 1, count - 1), -1)
    erase = jnp.zeros_like(g) if beta is None else beta
    numbers = jnp.concatenate([jnp.exp(g)[..., None], erase[..., None], scales], axis=-1)
    write = v if beta is None else beta[..., None] * v

    def spec(*sizes):
        return pl.BlockSpec((None, block, *sizes), lambda b, h, *_: (b, h, *[0] * len(sizes)))

    def oriented(x, features):
        """[B,1,H,X], as a row or column of a state."""
        x = x[:, 0, ..., None]
        return jnp.swapaxes(x, 2, 3) if (features == "keys") == keys_last else x

    key, value = ((1, key_dim), (value_dim, 1)) if keys_last else ((key_dim, 1), (1, value_dim))
    states = spec(count, *shape)
    y, levels = pl.pallas_call(
        partial(_kernel, beta is not None, int(keys_last)),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=3,
            grid=(batch, heads // block),
            in_specs=[spec(*key), spec(*key), spec(*value), spec(count + _SCALES, 1), states],
            out_specs=[spec(*value), states],
            scratch_shapes=[pltpu.VMEM(shape, jnp.float32)] * 2,
        ),
        out_shape=[
            jax.ShapeDtypeStruct((batch, heads, *value), jnp.float32),
            jax.ShapeDtypeStruct((batch, heads, count, *shape), jnp.float32),
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel"), vmem_limit_bytes=kernel_memory()
        ),
        input_output_aliases={7: 1},  # else a state that is given away would be copied first
        interpret=dispatch.interpretation(),
        name="log_linear_step",
    )(
        emptied, target, real.astype(jnp.int32),
        oriented(q, "keys"), oriented(k, "keys"), oriented(write, "values"),
        numbers[:, 0, ..., None], jnp.swapaxes(levels, 3, 4) if keys_last else levels,
    )  # fmt: skip
    y = y.reshape(batch, 1, heads, value_dim)
    return y, jnp.swapaxes(levels, 3, 4) if keys_last else levels


def _lanes(features):
    return pl.cdiv(features, 128) * 128


def _kernel(
    erases, keys, emptied_ref, target_ref, real_ref,
    q_ref, k_ref, v_ref, numbers_ref, levels_ref, y_ref, new_ref, merged_ref, read_ref,
):  # fmt: skip
    """States have their keys on axis `keys`."""
    row = pl.program_id(0)
    emptied, target, real = emptied_ref[row], target_ref[row], real_ref[row]
    heads, count = levels_ref.shape[:2]

    @pl.when(real == 0)
    def _():
        new_ref[...] = levels_ref[...]
        y_ref[...] = jnp.zeros_like(y_ref)

    @pl.when(real == 1)
    def _():
        @pl.loop(0, heads)
        def _(h):
            merged_ref[...] = jnp.zeros_like(merged_ref)

            @pl.loop(0, emptied)
            def _(level):
                merged_ref[...] += levels_ref[h, level]

            k = k_ref[h]
            read_ref[...] = jnp.zeros_like(read_ref)

            @pl.loop(0, count)
            def _(level):
                state = jnp.where(level < emptied, 0.0, levels_ref[h, level])
                state = state + jnp.where(level == target, merged_ref[...], 0.0)
                if erases:
                    erased = jnp.sum(k * state, axis=keys, keepdims=True)
                    state = state - k * (numbers_ref[h, _BETA : _BETA + 1] * erased)
                state = state * numbers_ref[h, _DECAY : _DECAY + 1]
                state = state + jnp.where(level == 0, k * v_ref[h], 0.0)
                new_ref[h, level] = state
                read_ref[...] += numbers_ref[h, pl.ds(_SCALES + level, 1)] * state

            y_ref[h] = jnp.sum(q_ref[h] * read_ref[...], axis=keys, keepdims=True)


def _step_fwd(*inputs):
    return _step(*inputs), inputs


def _step_bwd(inputs, cotangents):
    *arrays, length, real = inputs
    documents = Documents(jnp.zeros((len(real), 1), jnp.int32), real[:, None])

    def recurrence(q, k, v, g, beta, scales, levels):
        state = LogLinearState(levels, length)
        y, state = log_linear_recurrence(q, k, v, g, beta, scales, state, documents)
        return y, state.levels

    return *jax.vjp(recurrence, *arrays)[1](cotangents), None, None


_step.defvjp(_step_fwd, _step_bwd)
