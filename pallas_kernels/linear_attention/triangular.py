"""Unit lower triangular systems, as the chunk forms of the delta rules have them."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

_LEAF = 8  # up to this, substitution row by row is faster than products of halves


@jax.custom_jvp
def unit_lower_inverse(n: Float[Array, "*B C C"]) -> Float[Array, "*B C C"]:
    """(I + N)^-1 for a strictly lower triangular N; what N holds elsewhere must be zero.

    In halves, of which only the last are solved by substitution:

        (I + [[N11, 0], [N21, N22]])^-1 = [[X11, 0], [-X22 N21 X11, X22]]

    The product (I - N)(I + N^2)(I + N^4)... would need fewer steps, but for keys that resemble each
    other powers of N grow like binomial coefficients and cancel. And with
    `triangular_solve` programs for eight CPU devices in one process never ended.
    """
    size = n.shape[-1]
    if size <= _LEAF:
        return _substitute(n)
    if size % 2:
        n = jnp.pad(n, [(0, 0)] * (n.ndim - 2) + [(0, 1)] * 2)
        return unit_lower_inverse(n)[..., :size, :size]
    half = size // 2
    n21 = n[..., half:, :half]
    inverses = unit_lower_inverse(jnp.stack([n[..., :half, :half], n[..., half:, half:]]))
    x11, x22 = inverses[0], inverses[1]
    x21 = -_product(x22, _product(n21, x11))
    return jnp.block([[x11, jnp.zeros_like(x21)], [x21, x22]])


def _substitute(n: Float[Array, "*B C C"]) -> Float[Array, "*B C C"]:
    """The inverse row by row: X_i = e_i - sum_{j<i} N_ij X_j."""
    rows = []
    for i, unit in enumerate(np.eye(n.shape[-1], dtype=n.dtype)):
        row = jnp.broadcast_to(unit, n.shape[:-1])
        for j in range(i):
            row = row - n[..., i, j, None] * rows[j]
        rows.append(row)
    return jnp.stack(rows, axis=-2)


@unit_lower_inverse.defjvp
def _unit_lower_inverse_jvp(primals, tangents):
    inverse = unit_lower_inverse(*primals)
    return inverse, -_product(inverse, _product(_strictly_lower(*tangents), inverse))


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def unit_lower_solve(
    n: Float[Array, "*B C C"], r: Float[Array, "*B C V"], precision: jax.lax.PrecisionLike
) -> Float[Array, "*B C V"]:
    """X with (I + N) X = R, for N as in `unit_lower_inverse`.

    `precision` is that of the product with the inverse, which is itself always at the highest: a
    later row has the errors of all before it.
    """
    return jnp.matmul(unit_lower_inverse(n), r, precision=precision)


@unit_lower_solve.defjvp
def _unit_lower_solve_jvp(precision, primals, tangents):
    (n, r), (dn, dr) = primals, tangents
    product = partial(jnp.matmul, precision=precision)
    inverse = unit_lower_inverse(n)
    x = product(inverse, r)
    return x, product(inverse, dr - product(_strictly_lower(dn), x))


_product = partial(jnp.matmul, precision="highest")


def _strictly_lower(x: Array) -> Array:
    return jnp.where(np.tri(x.shape[-1], k=-1, dtype=bool), x, 0)
