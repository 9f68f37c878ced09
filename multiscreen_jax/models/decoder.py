"""One skeleton for decoders whose layers add to a residual stream.

    x_0 = W_E[token]
    x   = x + mixer(norm(x))                         each layer: a token mixer
    x   = x + feed_forward(norm(x))                  and, where there is one, a feed-forward
    z   = norm(x_N) W_U^T                            W_U = W_E if embeddings are tied

An architecture is a config whose `layer_plans` names the parts: which mixer, which feed-forward,
which residual scheme (it also places the norms). A pattern of several plans is repeated along the
depth, and layers run in one scan over its repeats, so that compile time does not grow with depth.

The residual stream is kept in `promote_types(dtype, float32)`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from multiscreen_jax.cache import check_rows, place
from multiscreen_jax.layers.embedding import check_segments, check_tokens, lookup
from multiscreen_jax.layers.norms import RMSNorm
from multiscreen_jax.layers.parameters import weight
from multiscreen_jax.layers.positions import document_positions
from multiscreen_jax.layers.stack import LayerStack, check_remat
from multiscreen_jax.mixers.mixer import Context
from multiscreen_jax.models import fields
from multiscreen_jax.models.fit import check_params
from multiscreen_jax.models.language_model import LanguageModel


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


Residual = Callable[[Array, Sublayer], Array]


def pre_norm(x: Float[Array, "B T D"], sublayer: Sublayer) -> Float[Array, "B T D"]:
    """x + F(norm(x))."""
    update = sublayer.branch(sublayer.norm(f"{sublayer.name}_norm")(x))
    return x + update.astype(x.dtype)


class Branch(NamedTuple):
    """A mixer or a feed-forward: its name in the parameter tree, its module, and its config.

    The module is a `mixers.mixer.Mixer`, or for a feed-forward any that maps [B, T, D] to it and
    has the same two counts, such as `layers.feed_forward.SwiGLU`; built as `module(config)`.
    """

    name: str
    module: Any
    config: Any


class LayerPlan(NamedTuple):
    """The parts of one layer."""

    mixer: Branch
    feed_forward: Branch | None
    residual: Residual = pre_norm

    @property
    def branches(self) -> list[Branch]:
        return [self.mixer] if self.feed_forward is None else [self.mixer, self.feed_forward]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """What the configs of all these architectures share; each adds `layer_plans`.

    Attributes:
        vocab_size: O.
        model_dim, num_layers: D, N.
        norm_eps: of every RMSNorm.
        tie_embeddings: one matrix for input and output.
        final_norm_gain: a learned gain in the last norm.
        trained_length: longest training sequence so far, in tokens; continued training updates it.
        dtype, param_dtype: of the products, and of the parameters.
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
        fields.booleans(self, "tie_embeddings", "final_norm_gain", "unroll_layers")
        check_remat(self.remat)

    def layer_plans(self) -> tuple[LayerPlan, ...]:
        """The layers of one period of the pattern, in order."""
        raise NotImplementedError(f"{type(self).__name__} does not define layer_plans")

    @property
    def init_scale(self) -> float:
        """Standard deviation of the initial weights."""
        return 0.02

    def weight_init(self) -> Any:
        """Initialiser of tables and of matrices that read the residual stream."""
        return nn.initializers.normal(self.init_scale)

    def output_init(self, rank: int) -> Any:
        """Initialiser of arrays of this rank that write to the stream, along their last axis."""
        raise NotImplementedError(f"{type(self).__name__} does not define output_init")

    def parameter_count(self) -> int:
        tables = 1 if self.tie_embeddings else 2
        total = self.model_dim * (tables * self.vocab_size + int(self.final_norm_gain))
        plans = self.layer_plans()
        repeats = self.num_layers // len(plans)
        for branch in (branch for plan in plans for branch in plan.branches):
            norm = self.model_dim
            total += repeats * (norm + branch.module.parameter_count(branch.config))
        return total

    def forward_flops(self, length: int) -> float:
        """FLOPs of one forward pass over one sequence (a multiply-add counts two).

        Matrix products alone; each branch says what it counts.
        """
        total = 2 * length * self.vocab_size * self.model_dim
        plans = self.layer_plans()
        repeats = self.num_layers // len(plans)
        for branch in (branch for plan in plans for branch in plan.branches):
            total += repeats * branch.module.forward_flops(branch.config, length)
        return float(total)


class Table(nn.Module):
    """Rows of a vocabulary."""

    config: DecoderConfig

    def setup(self) -> None:
        c = self.config
        shape = (c.vocab_size, c.model_dim)
        axes = ("vocabulary", "embed")
        self.rows = weight(self, "rows", c.weight_init(), shape, axes, c.param_dtype)


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


class DecoderLayer(nn.Module):
    """One layer of the pattern: the branches of its plan, each by the plan's residual scheme."""

    config: DecoderConfig
    place: int  # in the pattern

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], layer: tuple[Any, Any], context: Context
    ) -> tuple[Float[Array, "B T D"], Any]:
        c = self.config
        plan = c.layer_plans()[self.place]
        depth, cache = layer
        written = None

        def norm(name: str) -> nn.Module:
            return RMSNorm(c.norm_eps, jnp.dtype(c.dtype), jnp.dtype(c.param_dtype), name=name)

        def mix(x: Array) -> Array:
            nonlocal written
            mixer = plan.mixer.module(plan.mixer.config, name=plan.mixer.name)
            y, written = mixer(x, cache, context)
            return y

        block_input = x
        x = plan.residual(x, Sublayer(plan.mixer.name, mix, norm, depth, block_input))
        if plan.feed_forward is not None:
            name, module, config = plan.feed_forward
            branch = module(config, name=name)
            x = plan.residual(x, Sublayer(name, branch, norm, depth, block_input))
        return x, written


class LayerGroup(nn.Module):
    """The layers of one period of the pattern. A pattern of one layer adds no level to the tree."""

    config: DecoderConfig

    def setup(self) -> None:
        plans = self.config.layer_plans()
        self.layer = [DecoderLayer(self.config, i) for i in range(len(plans))]
        if len(plans) == 1:
            nn.share_scope(self, self.layer[0])

    def __call__(
        self, x: Float[Array, "B T D"], layers: tuple[Any, ...], contexts: tuple[Context, ...]
    ) -> tuple[Float[Array, "B T D"], tuple[Any, ...]]:
        written = []
        for layer, inputs, context in zip(self.layer, layers, contexts, strict=True):
            x, new = layer(x, inputs, context)
            written.append(new)
        return x, tuple(written)


class Decoder(LanguageModel):
    """The model; `apply({"params": params}, tokens)` gives a `ModelOutput`."""

    config: DecoderConfig

    def setup(self) -> None:
        c = self.config
        self.vocabulary = Vocabulary(c)
        # Its tables lie at the top of the tree.
        nn.share_scope(self, self.vocabulary)
        repeats = c.num_layers // len(c.layer_plans())
        self.layers = LayerStack(LayerGroup, {"config": c}, repeats, c.remat, c.unroll_layers)
        self.final_norm = RMSNorm(
            c.norm_eps, jnp.dtype(c.dtype), jnp.dtype(c.param_dtype), gain=c.final_norm_gain
        )

    def trunk(
        self,
        tokens: Int[Array, "B T"],
        segment_ids: Int[Array, "B T"] | None = None,
        cache: Any = None,
    ) -> tuple[Float[Array, "B T D"], Any]:
        """The normalised output of the last layer [B, T, D], and the new cache."""
        c = self.config
        check_tokens(tokens, c.vocab_size)
        check_segments(segment_ids, tokens.shape)
        self.check_own_params()
        x = self.vocabulary.encode(tokens)
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        mixers = [plan.mixer for plan in c.layer_plans()]
        depths = jnp.arange(c.num_layers).reshape(-1, len(mixers)).T

        if cache is None:
            rows = 1 if segment_ids is None else tokens.shape[0]
            positions = document_positions(segment_ids, rows, tokens.shape[1])
            contexts = tuple(
                Context(segment_ids, positions, m.module.prepare(m.config, positions, x.dtype))
                for m in mixers
            )
            x, _ = self.layers(x, tuple((depth, None) for depth in depths), contexts)
            return self.final_norm(x), None

        caches = (cache,) if len(mixers) == 1 else cache
        if not isinstance(caches, tuple) or len(caches) != len(mixers):
            raise ValueError(
                f"cache must be a tuple of {len(mixers)} caches, one for each layer of the "
                f"pattern, got {type(cache).__name__}"
            )
        for mixer, part in zip(mixers, caches, strict=True):
            mixer.module.check_cache(mixer.config, c.num_layers // len(mixers), part)
            check_rows(part.cursor, tokens.shape[0])
        places = [place(part.cursor, segment_ids, tokens.shape[1]) for part in caches]
        parts = [m.module.split_cache(part) for m, part in zip(mixers, caches, strict=True)]
        contexts = tuple(
            Context(
                segment_ids, chunk.position, m.module.prepare(m.config, chunk.position, x.dtype),
                whole, chunk,
            )
            for m, (_, whole), (chunk, _) in zip(mixers, parts, places, strict=True)
        )  # fmt: skip
        layers = tuple((depth, own) for depth, (own, _) in zip(depths, parts, strict=True))
        x, written = self.layers(x, layers, contexts)
        overflow = jnp.any(jnp.stack([chunk.overflow for chunk, _ in places]), axis=0)
        x = jnp.where(overflow[:, None, None], jnp.nan, self.final_norm(x))
        caches = tuple(
            m.module.write_cache(part, chunk, cursor, new)
            for m, part, (chunk, cursor), new in zip(mixers, caches, places, written, strict=True)
        )
        return x, caches[0] if len(mixers) == 1 else caches

    def output_rows(self) -> Float[Array, "O D"]:
        """The rows whose products with the trunk's output are the logits."""
        return self.vocabulary.output_rows()

    def init_cache(self, params: Any, batch: int, max_length: int, dtype: Any = None) -> Any:
        """An empty cache for `batch` rows of up to `max_length` tokens, in `dtype` (the model's).

        Sums over tokens (states) are kept in float32 at least. A pattern of several layers has a
        tuple of caches, one for each of them. `params` is read only where a mixer sizes its cache
        by it.
        """
        c = self.config
        dtype = fields.cache_dtype(c.dtype, dtype)
        if params is not None:
            check_params(self, params)
        plans = c.layer_plans()
        caches = []
        for i, (name, mixer, config) in enumerate(plan.mixer for plan in plans):
            layer = None if params is None else params["layers"]
            if layer is not None and len(plans) > 1:
                layer = layer[f"layer_{i}"]
            own = None if layer is None else layer[name]
            repeats = c.num_layers // len(plans)
            caches.append(mixer.init_cache(config, own, repeats, batch, max_length, dtype))
        return caches[0] if len(caches) == 1 else tuple(caches)
