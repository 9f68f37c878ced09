"""Residual schemes: how a branch joins the stream, and where its norms are. Frozen values."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
from jaxtyping import Array, Float, Int

from multiscreen_jax.values import Value


class Sublayer(NamedTuple):
    """One branch of a layer as a residual scheme sees it.

    Attributes:
        name: of the branch in the parameter tree; norms are named after it.
        branch: normalised input [B, T, D] -> update [B, T, D].
        norm: makes the norm of a name.
        depth: of the layer, from 0.
        block_input: [B, T, D], the stream before the layer's first branch.
    """

    name: str
    branch: Callable[[Array], Array]
    norm: Callable[[str], nn.Module]
    depth: Int[Array, ""]
    block_input: Array


class Residual(Value):
    """How a branch joins the stream; a frozen dataclass derives from it."""

    def __call__(self, x: Float[Array, "B T D"], sublayer: Sublayer) -> Float[Array, "B T D"]:
        """The stream after the branch."""
        raise NotImplementedError(f"{type(self).__name__} does not define __call__")


@dataclasses.dataclass(frozen=True)
class PreNorm(Residual):
    """x + F(norm(x))."""

    def __call__(self, x: Float[Array, "B T D"], sublayer: Sublayer) -> Float[Array, "B T D"]:
        update = sublayer.branch(sublayer.norm(f"{sublayer.name}_norm")(x))
        return x + update.astype(x.dtype)


PRE_NORM = PreNorm()


@dataclasses.dataclass(frozen=True)
class NoNorm(Residual):
    """x + F(x)."""

    def __call__(self, x: Float[Array, "B T D"], sublayer: Sublayer) -> Float[Array, "B T D"]:
        return x + sublayer.branch(x).astype(x.dtype)
