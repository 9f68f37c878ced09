"""Products of activations with weight matrices, as values: how they are rounded, and by what rule.

Every branch multiplies by its model's product, so that quantised weights and activations, say, are
one value of a config and no other code.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from multiscreen_jax.values import Value


class Product(Value):
    """A rule of multiplication; a frozen dataclass derives from it."""

    def __call__(
        self,
        subscripts: str,
        x: Float[Array, "..."],
        matrix: Float[Array, "..."],
        dtype: jnp.dtype,
        precision: Any,
        out: jnp.dtype | None,
    ) -> Float[Array, "..."]:
        """The product that `jnp.einsum` names by these subscripts.

        Args:
            x, matrix: activations and a weight, in their own dtypes.
            dtype: in which the model multiplies.
            precision: of the product, as `jnp.einsum` has it.
            out: dtype of sums and result; None: the model's.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define __call__")


@dataclasses.dataclass(frozen=True)
class Dense(Product):
    """The product itself, of both rounded to the model's dtype."""

    def __call__(
        self,
        subscripts: str,
        x: Float[Array, "..."],
        matrix: Float[Array, "..."],
        dtype: jnp.dtype,
        precision: Any,
        out: jnp.dtype | None,
    ) -> Float[Array, "..."]:
        return jnp.einsum(
            subscripts, x.astype(dtype), matrix.astype(dtype), precision=precision,
            preferred_element_type=out,
        )  # fmt: skip


DENSE = Dense()
