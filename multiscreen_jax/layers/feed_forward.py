"""SwiGLU feed-forward layer."""

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from multiscreen_jax import fields
from multiscreen_jax.layers.branch import Branch, Common, Spec


@dataclasses.dataclass(frozen=True, kw_only=True)
class SwiGLUSpec(Spec):
    """y = (silu(x G) * (x U)) D without biases. (arXiv:2002.05202, eq. 6)

    Attributes:
        feed_forward_dim: F.
    """

    feed_forward_dim: int

    tree_name: ClassVar[str] = "feed_forward"

    def __post_init__(self) -> None:
        fields.positive_integers(self, "feed_forward_dim")

    def build(self, common: Common, **how: Any) -> "SwiGLU":
        return SwiGLU(self, common, **how)


class SwiGLU(Branch):
    """The module of `SwiGLUSpec`: [B, T, D] -> [B, T, D], each token alone."""

    spec: SwiGLUSpec

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], context: Any = None) -> Float[Array, "B T D"]:
        del context
        c, width = self.common, self.spec.feed_forward_dim

        def product(name: str, x: Array, columns: int, *axes: str) -> Array:
            shape = (x.shape[-1], columns)
            matrix = self.weight(name, c.init(name, shape), shape, axes)
            return self.multiply("btd,df->btf", x, matrix)

        gate = product("gate", x, width, "embed", "feed_forward")
        up = product("up", x, width, "embed", "feed_forward")
        return product("down", jax.nn.silu(gate) * up, c.model_dim, "feed_forward", "embed")

    def forward_flops(self, length: int) -> float:
        """FLOPs over one sequence (a multiply-add counts two)."""
        return 6 * length * self.common.model_dim * self.spec.feed_forward_dim
