"""A language model around a trunk whose layers add to a residual stream.

    x_0 = W_E[token]
    x   = x + mixer(norm(x))                         each layer: a token mixer
    x   = x + feed_forward(norm(x))                  and, where there is one, a feed-forward
    z   = norm(x_N) W_U^T                            W_U = W_E if embeddings are tied

An architecture is a config whose `stages` says which layers there are: see `models.trunk`.

The residual stream is kept in `promote_types(dtype, float32)`.
"""

import dataclasses
from typing import Any, Self

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from multiscreen_jax import fields
from multiscreen_jax.cache import ModelCache
from multiscreen_jax.layers.branch import Common, Spec
from multiscreen_jax.layers.embedding import check_segments, check_tokens, lookup
from multiscreen_jax.layers.parameters import weight
from multiscreen_jax.layers.products import DENSE, Product
from multiscreen_jax.layers.stack import check_remat
from multiscreen_jax.models import trunk
from multiscreen_jax.models.architecture import architecture_of
from multiscreen_jax.models.fit import check_params, count_parameters
from multiscreen_jax.models.language_model import LanguageModel
from multiscreen_jax.models.trunk import Stage, Trunk


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Fields that the configs of all these architectures share; each adds `stages` and `init`.

    Attributes:
        vocab_size: O.
        model_dim, num_layers: D, N.
        norm_eps: of every RMSNorm.
        tie_embeddings: one matrix for input and output.
        final_norm_gain: a learned gain in the last norm.
        trained_length: longest training sequence so far, in tokens; continued training updates it.
        dtype, param_dtype: of the products, and of the parameters.
        logit_cap: c of the cap c tanh(logits / c); None: there is none.
        product: of activations with the matrices of all branches, see `layers.products`.
        precision: of all products: None (the backend's default), "default", "high", "highest".
        remat: what the backward pass keeps, see `layers.stack.LayerStack`.
        unroll_layers: run layers in a Python loop, for debugging.
    """

    vocab_size: int
    model_dim: int
    num_layers: int
    norm_eps: float = 1e-5
    tie_embeddings: bool = True
    final_norm_gain: bool = False
    trained_length: int | None = None
    dtype: str = "float32"
    param_dtype: str = "float32"
    logit_cap: float | None = None
    product: Product = DENSE
    precision: str | None = None
    remat: str = "none"
    unroll_layers: bool = False

    def __post_init__(self) -> None:
        fields.positive_integers(self, "vocab_size", "model_dim", "num_layers")
        fields.positive_numbers(self, "norm_eps")
        if self.trained_length is not None:
            fields.positive_integers(self, "trained_length")
        for field in ("dtype", "param_dtype"):
            object.__setattr__(self, field, fields.dtype_name(field, getattr(self, field)))
        fields.precision(self.precision)
        if self.logit_cap is not None:
            fields.positive_numbers(self, "logit_cap")
        if not isinstance(self.product, Product):
            raise ValueError(f"product must be a Product, got {self.product!r}")
        fields.booleans(self, "tie_embeddings", "final_norm_gain", "unroll_layers")
        check_remat(self.remat)

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> Self:
        """A named shape of this architecture, with fields replaced; see its record."""
        return architecture_of(cls).preset(name, **overrides)

    def own_fields(self, spec: type[Spec]) -> dict[str, Any]:
        """This config's values of a spec's fields, by name."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(spec)}

    def stages(self) -> tuple[Stage, ...]:
        """The layers, from the first to the last."""
        raise NotImplementedError(f"{type(self).__name__} does not define stages")

    def init(self) -> Any:
        """The rule of initial values: (role, shape) -> initialiser, see `layers.initializers`.

        The tables' role is "rows".
        """
        raise NotImplementedError(f"{type(self).__name__} does not define init")

    @property
    def common(self) -> Common:
        """Facts of this model that its branches may know."""
        return Common(
            model_dim=self.model_dim, num_layers=self.num_layers, dtype=self.dtype,
            param_dtype=self.param_dtype, precision=self.precision, norm_eps=self.norm_eps,
            product=self.product, init=self.init(),
        )  # fmt: skip

    def only_for_inference(self) -> tuple[tuple[str, str], ...]:
        """(field, what is allowed) of settings that training must not have."""
        return ()

    def parameter_count(self) -> int:
        """Numbers in all parameters, counted of their shapes."""
        return count_parameters(Decoder(self))

    def forward_flops(self, length: int) -> float:
        """FLOPs of one forward pass over one sequence (a multiply-add counts two).

        Matrix products alone; each branch says what it counts.
        """
        logits = 2 * length * self.vocab_size * self.model_dim
        return float(logits + trunk.forward_flops(self.common, self.stages(), length))


class Table(nn.Module):
    """Rows of a vocabulary."""

    config: DecoderConfig

    def setup(self) -> None:
        c = self.config
        shape = (c.vocab_size, c.model_dim)
        axes = ("vocabulary", "embed")
        self.rows = weight(self, "rows", c.init()("rows", shape), shape, axes, c.param_dtype)


class Vocabulary(nn.Module):
    """The table tokens come in by and the one logits go out by, often the same."""

    config: DecoderConfig

    def setup(self) -> None:
        self.embedding = Table(self.config)
        if not self.config.tie_embeddings:
            self.unembedding = Table(self.config)

    def encode(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        return lookup(self.embedding.rows, tokens)

    def output_rows(self) -> Float[Array, "O D"]:
        table = self.embedding if self.config.tie_embeddings else self.unembedding
        return table.rows.astype(jnp.dtype(self.config.dtype))


class Decoder(LanguageModel):
    """The model; `apply({"params": params}, tokens)` gives a `ModelOutput`."""

    config: DecoderConfig

    def setup(self) -> None:
        c = self.config
        self.vocabulary = Vocabulary(c)
        self.blocks = Trunk(c.common, c.stages(), c.remat, c.unroll_layers)
        # Tables and stages lie at the top of the tree.
        nn.share_scope(self, self.vocabulary)
        nn.share_scope(self, self.blocks)
        self.final_norm = c.common.norm(gain=c.final_norm_gain)

    def trunk(
        self,
        tokens: Int[Array, "B T"],
        segment_ids: Int[Array, "B T"] | None = None,
        cache: ModelCache | None = None,
        key: Key[Array, ""] | None = None,
    ) -> tuple[Float[Array, "B T D"], ModelCache | None]:
        """The normalised output of the last layer [B, T, D], and the new cache."""
        check_tokens(tokens, self.config.vocab_size)
        check_segments(segment_ids, tokens.shape, at_end=cache is not None)
        self.check_own_params()
        x = self.vocabulary.encode(tokens)
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        x, cache = self.blocks(x, segment_ids, cache, key)
        return self.final_norm(x), cache

    def output_rows(self) -> Float[Array, "O D"]:
        """The rows whose products with the trunk's output are the logits."""
        return self.vocabulary.output_rows()

    def init_cache(self, params: Any, batch: int, max_length: int, dtype: Any = None) -> ModelCache:
        """An empty cache for `batch` rows of up to `max_length` tokens, in `dtype` (the model's).

        Sums over tokens (states) are kept in float32 at least. `params` are read only where a
        mixer sizes its part by them, as screening does; then outside jit.
        """
        c = self.config
        dtype = fields.cache_dtype(c.dtype, dtype)
        if params is not None:
            check_params(self, params)
        return trunk.init_cache(c.common, c.stages(), params, batch, max_length, dtype)
