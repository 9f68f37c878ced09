"""Inverses of the unit lower triangular matrices in the chunk forms of the delta rules."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


@jax.custom_jvp
def unit_lower_inverse(n: Float[Array, "*B C C"]) -> Float[Array, "*B C C"]:
    """(I + N)^-1 for a strictly lower triangular N; what N holds elsewhere must be zero.

    By forward substitution: powers of N would be fewer products, but for keys that resemble each
    other they grow like binomial coefficients and cancel.
    """
    eye = jnp.broadcast_to(jnp.eye(n.shape[-1], dtype=n.dtype), n.shape)
    return jax.lax.linalg.triangular_solve(
        n + eye, eye, left_side=True, lower=True, unit_diagonal=True
    )


@unit_lower_inverse.defjvp
def _unit_lower_inverse_jvp(primals, tangents):
    (n,), (dn,) = primals, tangents
    inverse = unit_lower_inverse(n)
    dn = jnp.where(np.tri(n.shape[-1], k=-1, dtype=bool), dn, 0)
    return inverse, -(inverse @ dn @ inverse)
