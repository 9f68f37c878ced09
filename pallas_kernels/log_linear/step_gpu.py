"""One token of the log-linear ops on a GPU: states that hold something, in place."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from pallas_kernels.common.kernel_call import kernel_call
from pallas_kernels.common.pallas import pl, plgpu
from pallas_kernels.linear_attention.gpu_walk import meet, powers_of_two
from pallas_kernels.log_linear.step import Merges, Token

_VALUES, _KEYS = 32, 64  # of a program, and of its registers at a time


def step(
    token: Token, levels: Float[Array, "B H J K V"], merges: Merges
) -> tuple[Float[Array, "B H V"], Float[Array, "B H J K V"]]:
    """The kernel of `step.log_linear_step`.

    A program takes a head and a block of its values: states do not mix values. Levels that hold
    nothing, about half, are neither read nor written.
    """
    batch, heads, count, key_dim, value_dim = levels.shape
    values = min(_VALUES, value_dim & -value_dim)

    def spec(*sizes, values=None):
        """Of a row and head; the last axis in blocks with `values`."""
        last = [] if values is None else [values]
        inside = [0] * len(sizes)
        return pl.BlockSpec(
            (None, None, *sizes, *last), lambda i, h, b: (b, h, *inside, *([i] * len(last)))
        )

    row = pl.BlockSpec((1,), lambda i, h, b: (b,))
    key, states = spec(key_dim), spec(count, key_dim, values=values)
    number = pl.BlockSpec((None, 1), lambda i, h, b: (b, h))
    beta = None if token.beta is None else number
    tokens = Token(key, key, spec(values=values), number, beta, spec(count))
    given = len(jax.tree.leaves((token, merges)))
    return kernel_call(
        partial(_kernel, parts=powers_of_two(key_dim, _KEYS)),
        grid=(value_dim // values, heads, batch),
        in_specs=[tokens, Merges(row, row, row, row), states],
        out_specs=[spec(values=values), states],
        out_shape=[
            jax.ShapeDtypeStruct((batch, heads, value_dim), jnp.float32),
            jax.ShapeDtypeStruct(levels.shape, jnp.float32),
        ],
        input_output_aliases={given: 1},
        compiler_params=plgpu.CompilerParams(num_warps=8, num_stages=1),
        name="log_linear_step",
    )(token, merges, levels)


def _kernel(token, merges, levels_ref, y_ref, new_ref, *, parts):
    held, emptied, target, real = (ref[0] for ref in merges)
    count, values = new_ref.shape[0], new_ref.shape[2]
    keys = [token.k[part] for part in parts]
    write, decay = token.write[...], token.decay[0]
    zeros = [jnp.zeros((len(k), values), jnp.float32) for k in keys]

    def holds(level):
        return (held >> level) & 1 == 1

    def gathered(level, merged):
        def add():
            return [x + levels_ref[level, part] for x, part in zip(merged, parts, strict=True)]

        return lax.cond(holds(level), add, lambda: merged)

    merged = lax.fori_loop(0, emptied, gathered, zeros)

    def moved(level, read):
        def move():
            stays = holds(level) & (level >= emptied)
            states = [
                jnp.where(stays, levels_ref[level, part], 0.0) + jnp.where(level == target, x, 0.0)
                for x, part in zip(merged, parts, strict=True)
            ]
            meet()  # before any of it is overwritten
            if token.beta is not None:
                erased = sum(
                    jnp.sum(k[:, None] * x, axis=0) for k, x in zip(keys, states, strict=True)
                )
                erased = token.beta[0] * erased
                states = [x - k[:, None] * erased[None] for k, x in zip(keys, states, strict=True)]
            states = [
                x * decay + jnp.where(level == 0, k[:, None] * write[None], 0.0)
                for k, x in zip(keys, states, strict=True)
            ]
            for part, x in zip(parts, states, strict=True):
                new_ref[level, part] = x
            weight = token.scales[level]
            return [a + weight * x for a, x in zip(read, states, strict=True)]

        touched = holds(level) | (level == 0) | (level == target)
        return lax.cond(touched, move, lambda: read)

    read = lax.fori_loop(0, real * count, moved, zeros)  # of padding nothing
    y_ref[...] = sum(
        jnp.sum(token.q[part][:, None] * x, axis=0) for part, x in zip(parts, read, strict=True)
    )
