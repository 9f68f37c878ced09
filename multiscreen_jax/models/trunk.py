"""Layers between a stream of vectors and another: stages of repeated patterns.

    Layer(mixer, feed_forward, residual)      values, see `layers.branch` and `layers.residuals`
    Stage("layers", pattern, repeats)         a pattern of layers, repeated along the depth
    Trunk(common, stages)                     [B, T, D] -> [B, T, D], with a cache

It knows no vocabulary: decoders put one around it. The layers of a stage run in one scan over its
repeats, so that compile time grows with the patterns and not with depth.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from multiscreen_jax.cache import ModelCache, check_cache, check_size, new_cursor, place
from multiscreen_jax.layers.branch import Common, Spec
from multiscreen_jax.layers.documents import documents
from multiscreen_jax.layers.initializers import Init
from multiscreen_jax.layers.positions import document_positions
from multiscreen_jax.layers.residuals import PRE_NORM, Residual, Sublayer
from multiscreen_jax.layers.stack import LayerStack
from multiscreen_jax.mixers.mixer import Context, Mixed, Mixer


@dataclasses.dataclass(frozen=True)
class Layer:
    """One layer as a value.

    Attributes:
        mixer: the spec of its token mixer.
        feed_forward: the spec of what follows; None: nothing.
        residual: how both join the stream.
        mixer_init: the rule of the mixer's initial values where it is not the model's.
    """

    mixer: Spec
    feed_forward: Spec | None = None
    residual: Residual = PRE_NORM
    mixer_init: Init | None = None

    def build_mixer(self, common: Common, **how: Any) -> Mixer:
        """The mixer's module."""
        if self.mixer_init is not None:
            common = dataclasses.replace(common, init=self.mixer_init)
        return self.mixer.build(common, **how)


@dataclasses.dataclass(frozen=True)
class Stage:
    """A pattern of layers and how often it is repeated.

    Attributes:
        name: of the stage in the parameter tree.
        pattern: the layers of one period, in order.
        repeats: how many periods there are.
    """

    name: str
    pattern: tuple[Layer, ...]
    repeats: int

    def mixers(self, common: Common) -> list[Mixer]:
        """The unbound modules of the pattern's mixers, for all that needs no parameters."""
        return [layer.build_mixer(common, parent=None) for layer in self.pattern]

    @property
    def num_layers(self) -> int:
        return len(self.pattern) * self.repeats


def stages_of(
    num_layers: int, pattern: tuple[Layer, ...], first: tuple[Layer, ...] = ()
) -> tuple[Stage, ...]:
    """The stages "first" (where there are such layers), "layers", and "last", what is left.

    Raises:
        ValueError: there is no room for one whole pattern.
    """
    if not pattern:
        raise ValueError("pattern must have at least one layer, got none")
    repeats, left = divmod(num_layers - len(first), len(pattern))
    if repeats < 1:
        raise ValueError(
            f"num_layers must be at least {len(first) + len(pattern)}, the layers of first and of "
            f"one pattern, got {num_layers}"
        )
    stages = [Stage("layers", pattern, repeats)]
    if first:
        stages.insert(0, Stage("first", first, 1))
    if left:
        stages.append(Stage("last", pattern[:left], 1))
    return tuple(stages)


def layer_places(stages: tuple[Stage, ...]) -> list[tuple[str, int]]:
    """Where each layer is in the parameter tree, from the first: (path, index among repeats)."""
    places = []
    for stage in stages:
        several = len(stage.pattern) > 1
        for repeat in range(stage.repeats):
            for number in range(len(stage.pattern)):
                level = f"layer_{number}/" if several else ""
                places.append((f"{stage.name}/{level}", repeat))
    return places


def forward_flops(common: Common, stages: tuple[Stage, ...], length: int) -> float:
    """FLOPs of all branches over one sequence, as each says them."""
    total = 0.0
    for stage in stages:
        for layer, mixer in zip(stage.pattern, stage.mixers(common), strict=True):
            total += stage.repeats * mixer.forward_flops(length)
            if layer.feed_forward is not None:
                branch = layer.feed_forward.build(common, parent=None)
                total += stage.repeats * branch.forward_flops(length)
    return total


def init_cache(
    common: Common,
    stages: tuple[Stage, ...],
    params: Any,
    batch: int,
    max_length: int,
    dtype: jnp.dtype,
) -> ModelCache:
    """An empty cache for `batch` rows of up to `max_length` tokens.

    `params`, the model's, are read where a mixer sizes its part by them; None otherwise.
    """
    check_size(batch, max_length)
    parts, limits = {}, []
    for stage in stages:
        made = []
        for number, mixer in enumerate(stage.mixers(common)):
            own = None if params is None else params[stage.name]
            if own is not None and len(stage.pattern) > 1:
                own = own[f"layer_{number}"]
            own = None if own is None else own[mixer.spec.tree_name]
            part, limit = mixer.init_cache(own, stage.repeats, batch, max_length, dtype)
            made.append(part)
            limits.append(limit)
        parts[stage.name] = tuple(made)
    return ModelCache(parts, new_cursor(batch, min(limits)))


def _once(stage: Stage, given: dict[str, Array]) -> dict[str, Array]:
    """What the layers of a stage gave, each once, without the axis of repeats."""
    if given and stage.repeats > 1:
        raise ValueError(
            f"layers of stage {stage.name!r} give {', '.join(given)}, {stage.repeats} times; "
            "allowed: a stage that is not repeated"
        )
    return {name: x[0] for name, x in given.items()}


class TrunkLayer(nn.Module):
    """The branches of one layer, each joined to the stream by the layer's residual scheme."""

    common: Common
    layer: Layer

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], own: tuple[Int[Array, ""], Any], context: Context
    ) -> tuple[Float[Array, "B T D"], Any]:
        depth, cache = own
        layer, mixed = self.layer, None
        if context.key is not None:
            context = context.replace(key=jax.random.fold_in(context.key, depth))
        self.sow("intermediates", "residual", x, reduce_fn=lambda _, new: new)

        def mix(x: Array) -> Array:
            nonlocal mixed
            mixer = layer.build_mixer(self.common, name=layer.mixer.tree_name)
            mixed = Mixed(*mixer(x, cache, context))
            return mixed.y

        def feed(x: Array) -> Array:
            return layer.feed_forward.build(self.common, name=layer.feed_forward.tree_name)(
                x, context
            )

        about = self.common.norm, depth, x
        x = layer.residual(x, Sublayer(layer.mixer.tree_name, mix, *about))
        if layer.feed_forward is not None:
            x = layer.residual(x, Sublayer(layer.feed_forward.tree_name, feed, *about))
        return x, (mixed.written, dict(mixed.given))


class LayerGroup(nn.Module):
    """The layers of one period of a pattern. A pattern of one layer adds no level to the tree."""

    common: Common
    pattern: tuple[Layer, ...]

    def setup(self) -> None:
        self.layer = [TrunkLayer(self.common, layer) for layer in self.pattern]
        if len(self.pattern) == 1:
            nn.share_scope(self, self.layer[0])

    def __call__(
        self, x: Float[Array, "B T D"], layers: tuple[Any, ...], contexts: tuple[Context, ...]
    ) -> tuple[Float[Array, "B T D"], tuple[Any, ...]]:
        written, given = [], {}
        for layer, own, context in zip(self.layer, layers, contexts, strict=True):
            x, (new, gives) = layer(x, own, context)
            written.append(new)
            given |= gives
        return x, (tuple(written), given)


class Trunk(nn.Module):
    """The stages one after another.

    Attributes:
        common: what all branches may know of the model.
        stages: in order; each is a level of the parameter tree.
        remat: what the backward pass keeps, see `layers.stack.LayerStack`.
        unroll: run layers in a Python loop, for debugging.
    """

    common: Common
    stages: tuple[Stage, ...]
    remat: str = "none"
    unroll: bool = False

    def setup(self) -> None:
        for stage in self.stages:
            of_block = {"common": self.common, "pattern": stage.pattern}
            stack = LayerStack(LayerGroup, of_block, stage.repeats, self.remat, self.unroll)
            setattr(self, stage.name, stack)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        segment_ids: Int[Array, "B T"] | None = None,
        cache: ModelCache | None = None,
        key: Key[Array, ""] | None = None,
    ) -> tuple[Float[Array, "B T D"], ModelCache | None]:
        """The stream after the last layer, NaN in rows that overflow, and the new cache.

        `key` drives what is random in training; every layer gets one of its own.
        """
        chunk = cursor = None
        if cache is None:
            segment_ids = documents(segment_ids)
            rows = 1 if segment_ids is None else x.shape[0]
            positions = document_positions(segment_ids, rows, x.shape[1])
        else:
            self._check(cache, x.shape[0])
            chunk, cursor = place(cache.cursor, segment_ids, x.shape[1])
            segment_ids = None if segment_ids is None else chunk.segment_ids
            positions = chunk.position
        depth, parts, prepared, given = 0, {}, {}, {}
        for stage in self.stages:
            mixers = stage.mixers(self.common)
            held = (None,) * len(mixers) if cache is None else cache.parts[stage.name]
            layers, contexts = [], []
            for number, (mixer, part) in enumerate(zip(mixers, held, strict=True)):
                if mixer.spec not in prepared:
                    prepared[mixer.spec] = mixer.prepare(positions, x.dtype)
                own, whole = (None, None) if part is None else mixer.split_cache(part)
                depths = depth + number + len(mixers) * jnp.arange(stage.repeats)
                layers.append((depths, own))
                contexts.append(
                    Context(
                        segment_ids, positions, prepared[mixer.spec], whole, chunk,
                        None if cache is None else cache.cursor, given, key,
                    )
                )  # fmt: skip
            x, (written, gives) = getattr(self, stage.name)(x, tuple(layers), tuple(contexts))
            given = given | _once(stage, gives)
            if cache is not None:
                parts[stage.name] = tuple(
                    mixer.write_cache(part, chunk, cursor, new)
                    for mixer, part, new in zip(mixers, held, written, strict=True)
                )
            depth += stage.num_layers
        if cache is None:
            return x, None
        return jnp.where(chunk.overflow[:, None, None], jnp.nan, x), ModelCache(parts, cursor)

    def _check(self, cache: Any, rows: int) -> None:
        check_cache(cache, {stage.name: len(stage.pattern) for stage in self.stages}, rows)
        for stage in self.stages:
            for mixer, part in zip(stage.mixers(self.common), cache.parts[stage.name], strict=True):
                mixer.check_cache(part, stage.repeats, cache.cursor)
