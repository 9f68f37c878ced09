"""A mixture of experts in place of a feed-forward: a router, and many small feed-forwards.

    g_e(x) = the router's weight of expert e for token x, 0 for all but k experts
    y      = sum_e g_e(x) (silu(x G_e) * (x U_e)) D_e

This form is dense: every expert computes every token, and weights of 0 take the rest away. It is
exact, needs no exchange but a sum where a mesh divides the experts, and costs E / k times the work
of the experts that were chosen.
"""

import dataclasses
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from multiscreen_jax import fields
from multiscreen_jax.layers.branch import Branch, Common, Spec
from multiscreen_jax.values import Value
from pallas_kernels.common.numerics import accumulation_dtype


class Routing(NamedTuple):
    """Which experts a token takes, and with what weight; k <= E of them.

    Attributes:
        experts: [B, T, k], each a different one.
        weights: [B, T, k].
    """

    experts: Int[Array, "B T k"]
    weights: Float[Array, "B T k"]


class Router(Value):
    """A rule of routing; a frozen dataclass derives from it."""

    def __call__(
        self, branch: Branch, logits: Float[Array, "B T E"], counts: Float[Array, "B T"]
    ) -> Routing:
        """Routes tokens by the logits x W_R.

        Args:
            branch: takes parameters of its own (`weight`), losses and metrics.
            logits: in `promote_types(dtype, float32)`.
            counts: 1 for a token, 0 for padding, which no balance may see.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define __call__")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TopK(Router):
    """The k largest of softmax(logits), as Mixtral and Qwen3-MoE have it.

    Attributes:
        k: experts of a token.
        normalize: their weights sum to one.
        balance: factor of the loss E sum_e f_e p_e (Switch Transformers, arXiv:2101.03961, eq. 4),
            where f_e is the share of the choices that took expert e and p_e its mean probability:
            1 where all are alike. It is summed over layers, and of one part of the batch.
    """

    k: int = 2
    normalize: bool = True
    balance: float = 0.01

    def __post_init__(self) -> None:
        fields.positive_integers(self, "k")
        fields.booleans(self, "normalize")
        fields.positive_numbers(self, "balance", or_zero=True)

    def __call__(
        self, branch: Branch, logits: Float[Array, "B T E"], counts: Float[Array, "B T"]
    ) -> Routing:
        probabilities = jax.nn.softmax(logits, axis=-1)
        weights, experts = jax.lax.top_k(probabilities, self.k)
        chosen = jax.nn.one_hot(experts, logits.shape[-1], dtype=logits.dtype).sum(2)
        tokens = jnp.maximum(jnp.sum(counts), 1)
        share = jnp.einsum("bte,bt->e", chosen, counts) / (tokens * self.k)
        mean = jnp.einsum("bte,bt->e", probabilities, counts) / tokens
        branch.add_loss("balance", self.balance * logits.shape[-1] * jnp.sum(share * mean))
        layers = branch.common.num_layers
        branch.add_metric("fullest_expert", jnp.max(share) * logits.shape[-1] / layers)
        if self.normalize:
            weights = weights / jnp.sum(weights, axis=-1, keepdims=True)
        return Routing(experts, weights)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExpertsSpec(Spec):
    """A mixture of SwiGLU experts.

    Attributes:
        num_experts: E.
        feed_forward_dim: F of each expert.
        router: which experts a token takes.
    """

    num_experts: int
    feed_forward_dim: int
    router: Router = TopK()

    tree_name: ClassVar[str] = "feed_forward"

    def __post_init__(self) -> None:
        fields.positive_integers(self, "num_experts", "feed_forward_dim")
        if getattr(self.router, "k", 1) > self.num_experts:
            raise ValueError(
                f"k of the router must be at most num_experts, got k={self.router.k}, "
                f"num_experts={self.num_experts}"
            )

    def build(self, common: Common, **how: Any) -> "Experts":
        return Experts(self, common, **how)


class Experts(Branch):
    """The module of `ExpertsSpec`: [B, T, D] -> [B, T, D], each token alone."""

    spec: ExpertsSpec

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], context: Any = None) -> Float[Array, "B T D"]:
        s, c = self.spec, self.common
        ids = None if context is None else context.segment_ids
        wide = accumulation_dtype(x)
        counts = jnp.ones(x.shape[:2], wide) if ids is None else (ids != 0).astype(wide)
        routing = s.router(self, self.project_gate("router", x, expert=s.num_experts), counts)
        one_hot = jax.nn.one_hot(routing.experts, s.num_experts, dtype=wide)
        weights = jnp.einsum("btke,btk->bte", one_hot, routing.weights)

        width = s.feed_forward_dim

        def matrices(name: str, rows: int, columns: int, *axes: str) -> Array:
            shape = (s.num_experts, rows, columns)
            init = _of_each(c.init(name, (rows, columns)))
            return self.weight(name, init, shape, ("expert", *axes))

        gate = matrices("gate", c.model_dim, width, "embed", "feed_forward")
        up = matrices("up", c.model_dim, width, "embed", "feed_forward")
        down = matrices("down", width, c.model_dim, "feed_forward", "embed")
        hidden = jax.nn.silu(self.multiply("btd,edf->btef", x, gate))
        hidden = hidden * self.multiply("btd,edf->btef", x, up)
        # The weight is applied to what is added up, so that one product does both.
        hidden = hidden * weights[..., None].astype(hidden.dtype)
        return self.multiply("btef,efd->btd", hidden, down)

    def forward_flops(self, length: int) -> float:
        """FLOPs of the router, and of the experts that are chosen, over one sequence."""
        s, dim = self.spec, self.common.model_dim
        k = getattr(s.router, "k", s.num_experts)
        return 2 * length * dim * s.num_experts + 6 * length * dim * s.feed_forward_dim * k


def _of_each(init: Any) -> Any:
    """The initialiser of matrices [E, ...], each drawn as one alone would be."""

    def draw(key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
        keys = jax.random.split(key, shape[0])
        return jax.vmap(lambda key: init(key, shape[1:], dtype))(keys)

    return draw
