"""One token of the log-linear ops on a TPU: every state is read once and written once."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels.common.kernel_call import kernel_call
from pallas_kernels.common.pallas import pl, pltpu
from pallas_kernels.common.tpu import kernel_memory, states_too_large
from pallas_kernels.log_linear.step import Merges, Token

_STATE_BYTES = 4 * 2**20  # of vector memory, for the states of the heads of one step
_DECAY, _BETA, _SCALES = 0, 1, 2  # rows of a head's numbers


def step(
    token: Token, levels: Float[Array, "B H J K V"], merges: Merges
) -> tuple[Float[Array, "B H V"], Float[Array, "B H J K V"]]:
    """The kernel of `step.log_linear_step`.

    Raises:
      NotImplementedError: the states of a head do not fit into vector memory.
    """
    batch, heads, count, key_dim, value_dim = levels.shape
    # Keys or values lie on lanes, whichever fill them better: so the states lie in device memory.
    keys_last = _lanes(key_dim) * value_dim < _lanes(value_dim) * key_dim
    shape = (value_dim, key_dim) if keys_last else (key_dim, value_dim)
    head_bytes = count * shape[0] * _lanes(shape[1]) * 4
    needed = 4 * head_bytes + 2**20  # in and out, both twice
    if needed > kernel_memory():
        raise states_too_large(count, key_dim, value_dim, needed, kernel_memory())
    most = max(1, _STATE_BYTES // head_bytes)
    block = max(n for n in range(1, heads + 1) if heads % n == 0 and n <= most)
    erase = jnp.zeros_like(token.decay) if token.beta is None else token.beta
    numbers = jnp.concatenate([token.decay[..., None], erase[..., None], token.scales], axis=-1)

    def spec(*sizes):
        return pl.BlockSpec((None, block, *sizes), lambda b, h, *_: (b, h, *[0] * len(sizes)))

    def oriented(x, features):
        """[B,H,X], as a row or column of a state."""
        return x[:, :, None] if (features == "keys") == keys_last else x[..., None]

    key, value = ((1, key_dim), (value_dim, 1)) if keys_last else ((key_dim, 1), (1, value_dim))
    states = spec(count, *shape)
    y, levels = kernel_call(
        partial(_kernel, token.beta is not None, int(keys_last)),
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
        name="log_linear_step",
    )(
        merges.emptied, merges.target, merges.real,
        oriented(token.q, "keys"), oriented(token.k, "keys"), oriented(token.write, "values"),
        numbers[..., None], jnp.swapaxes(levels, 3, 4) if keys_last else levels,
    )  # fmt: skip
    y = y.reshape(batch, heads, value_dim)
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
