"""Branches of a layer (mixers and feed-forwards): what they are as values, and as modules.

A branch is described by a spec, a frozen dataclass with the branch's own fields and nothing of the
model around it. `spec.build(common)` is its Flax module; `Common` has what the model gives to all.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from multiscreen_jax.layers import parameters
from multiscreen_jax.layers.norms import RMSNorm
from multiscreen_jax.layers.products import DENSE, Product
from multiscreen_jax.layers.sown import sow
from multiscreen_jax.values import Value
from pallas_kernels.common.numerics import accumulation_dtype

Initializer = Callable[..., Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Common:
    """Facts of a model that its branches may know.

    Attributes:
        model_dim, num_layers: D, N.
        dtype, param_dtype: of the products, and of the parameters.
        precision: of all products: None (the backend's default), "default", "high", "highest".
        norm_eps: of every norm.
        product: of activations with every matrix of a branch.
        init: the initialiser of a parameter, by its role (mostly its name) and shape; a hashable
            value, see `layers.initializers`. None where every parameter has its own.
    """

    model_dim: int
    num_layers: int
    dtype: str = "float32"
    param_dtype: str = "float32"
    precision: str | None = None
    norm_eps: float = 1e-5
    product: Product = DENSE
    init: Callable[[str, tuple[int, ...]], Initializer] | None = None

    def norm(self, name: str | None = None, **fields: Any) -> nn.Module:
        """The model's norm, as a module of this name."""
        return RMSNorm(*self.norm_settings, name=name, **fields)

    @property
    def norm_settings(self) -> tuple[float, jnp.dtype, jnp.dtype]:
        """eps, dtype and param_dtype, with which all modules of `layers.norms` begin."""
        return self.norm_eps, jnp.dtype(self.dtype), jnp.dtype(self.param_dtype)


class Spec(Value):
    """A branch as a value; a frozen dataclass derives from it.

    Attributes:
        tree_name: of the branch in the parameter tree; the norm before it is named after it.
    """

    tree_name: ClassVar[str]

    def build(self, common: Common, **how: Any) -> Any:
        """The module; `how` goes to Flax (`name`, `parent`)."""
        raise NotImplementedError(f"{type(self).__name__} does not define build")


class Branch(nn.Module):
    """The module of a spec, with products and parameters as all branches make them.

    Attributes:
        spec: the branch's own fields.
        common: what the model gives to all its branches.
    """

    spec: Any
    common: Common

    def forward_flops(self, length: int) -> float:
        """FLOPs of one layer over one sequence (a multiply-add counts two)."""
        raise NotImplementedError(f"{type(self).__name__} does not define forward_flops")

    def decode_flops(self, context: int) -> float:
        """FLOPs of one layer for one token after `context` others, with a cache."""
        return self.forward_flops(context + 1) - self.forward_flops(context)

    def weight(
        self,
        name: str,
        init: Any,
        shape: Sequence[int],
        axes: Sequence[str | None],
        *,
        decay: bool = True,
        rule: str = "adamw",
    ) -> Array:
        """A parameter in the model's `param_dtype`, with its facts: see `parameters.weight`."""
        dtype = self.common.param_dtype
        return parameters.weight(self, name, init, shape, axes, dtype, decay=decay, rule=rule)

    def add_loss(self, name: str, value: Float[Array, ""]) -> None:
        """A loss besides the objective's, already weighted, summed over layers.

        Training adds it and logs `losses/{name}`; of the part of the batch that is computed at a
        time, see `objectives.objective`. `losses.next_token` is free of it.
        """
        sow(self, "losses", name, value)

    def add_metric(self, name: str, value: Float[Array, ""]) -> None:
        """A number that training logs as `metrics/{name}`, summed over layers."""
        sow(self, "metrics", name, value)

    def multiply(
        self, subscripts: str, x: Array, matrix: Array, out: jnp.dtype | None = None
    ) -> Array:
        """The model's product of activations with a weight, see `layers.products`."""
        c = self.common
        return c.product(subscripts, x, matrix, jnp.dtype(c.dtype), c.precision, out)

    def project(
        self, name: str, x: Float[Array, "B T D"], *, bias: bool = False, **sizes: int
    ) -> Float[Array, "..."]:
        """x W in the model's dtype; W is the parameter `name`.

        `project("query", x, heads=H, key=K)` gives [B, T, H, K] by a W [D, H, K]: each name is
        that of an axis (see `sharding.LogicalAxes`), with its size. With `bias` the parameter
        `{name}_bias` [H, K] is added.
        """
        y = self._product(name, x, sizes, jnp.dtype(self.common.dtype))
        return y + self._bias(name, sizes.values(), sizes) if bias else y

    def project_gate(
        self, name: str, x: Float[Array, "B T D"], **sizes: int
    ) -> Float[Array, "..."]:
        """The same, accumulated and kept in `promote_types(dtype, float32)`: for gates."""
        return self._product(name, x, sizes, accumulation_dtype(x))

    def project_out(
        self, name: str, y: Float[Array, "B T H V"], dim: str = "value", *, bias: bool = False
    ) -> Float[Array, "B T D"]:
        """y W summed over heads; W is the parameter `name` [H, V, D], and `dim` its second axis.

        With `bias` the parameter `{name}_bias` [D] is added.
        """
        c = self.common
        shape = (*y.shape[2:], c.model_dim)
        matrix = self.weight(name, c.init(name, shape), shape, ("heads", dim, "embed"))
        x = self.multiply("bthv,hvd->btd", y, matrix)
        return x + self._bias(name, (c.model_dim,), ("embed",)) if bias else x

    def _bias(self, name: str, shape: Iterable[int], axes: Iterable[str]) -> Array:
        zeros = nn.initializers.zeros_init()
        bias = self.weight(f"{name}_bias", zeros, tuple(shape), tuple(axes), decay=False)
        return bias.astype(jnp.dtype(self.common.dtype))

    def _product(self, name: str, x: Array, sizes: dict[str, int], out: jnp.dtype) -> Array:
        shape = (x.shape[-1], *sizes.values())
        matrix = self.weight(name, self.common.init(name, shape), shape, ("embed", *sizes))
        return self.multiply("btd,d...->bt...", x, matrix, out)
