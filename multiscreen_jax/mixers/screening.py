"""Gated screening tiles, the only mixer of Multiscreen, and their decoding cache.

One layer holds H tiles ("heads") that read the same input and whose outputs are summed. All
projections are batched over tiles.
"""

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from multiscreen_jax import fields
from multiscreen_jax.cache import Chunk, Cursor, check_like
from multiscreen_jax.layers.branch import Common, Spec
from multiscreen_jax.layers.positions import POSITION_RULES, mipe, mipe_turns
from multiscreen_jax.layers.stack import mark_mixer_output
from multiscreen_jax.mixers.mixer import Context, Mixed, Mixer
from multiscreen_jax.mixers.screening_cache import (
    SLOTS_MULTIPLE,
    ScreeningCache,
    empty_cache,
    init_screening_cache,
    write_screening_cache,
)
from multiscreen_jax.sharding import flat_tokens
from pallas_kernels import screening
from pallas_kernels.common.dispatch import check_implementation
from pallas_kernels.common.numerics import accumulation_dtype, tanh_norm, unit_norm
from pallas_kernels.screening import screening_decode
from pallas_kernels.screening.reference import trim


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScreeningSpec(Spec):
    """H gated screening tiles.

    Attributes:
        num_heads: H.
        key_dim, value_dim: K >= 2 and V of every tile.
        window_threshold: w_th, in tokens: windows start below it, and a tile whose window exceeds
            it has no position encoding.
        position_rule: "absolute" (the paper's) or "wrap", the rule of two PyTorch ports, in which
            positions from `wrap_length` on count modulo the window.
        trained_length: longest training sequence so far, in tokens.
        infinite_windows: inference rule: windows above `trained_length` become infinite.
        implementation: of the screening op, see `pallas_kernels.screening`. Cached tokens take the
            platform's decode kernel where there is one.
        block_summaries: keep summaries of blocks of keys in the cache. Decoding then rejects most
            blocks of an infinite tile unread, and gives the same result; see
            `pallas_kernels.screening.summaries`.
    """

    num_heads: int
    key_dim: int = 16
    value_dim: int = 64
    window_threshold: float = 256.0
    position_rule: str = "absolute"
    wrap_length: int | None = None
    trained_length: int | None = None
    infinite_windows: bool = False
    implementation: str | tuple[str, ...] | None = None
    block_summaries: bool = False

    tree_name: ClassVar[str] = "tiles"

    def __post_init__(self) -> None:
        fields.positive_integers(self, "num_heads", "value_dim")
        fields.positive_integers(self, "key_dim", at_least=2)  # MiPE turns two coordinates
        fields.positive_numbers(self, "window_threshold")
        if self.window_threshold <= 1:
            raise ValueError(f"window_threshold must be > 1 token, got {self.window_threshold}")
        fields.one_of("position_rule", self.position_rule, POSITION_RULES)
        if (self.position_rule == "wrap") != (self.wrap_length is not None):
            raise ValueError(
                'wrap_length must be given with position_rule="wrap" and only then, got '
                f"position_rule={self.position_rule!r}, wrap_length={self.wrap_length!r}"
            )
        for field in ("wrap_length", "trained_length"):
            if getattr(self, field) is not None:
                fields.positive_integers(self, field)
        if self.infinite_windows and self.trained_length is None:
            raise ValueError("infinite_windows=True needs trained_length, got None")
        fields.booleans(self, "infinite_windows", "block_summaries")
        check_implementation(self.implementation)
        if isinstance(self.implementation, list):  # specs are hashable
            object.__setattr__(self, "implementation", tuple(self.implementation))

    def build(self, common: Common, **how: Any) -> "ScreeningTiles":
        return ScreeningTiles(self, common, **how)


def tile_window(spec: ScreeningSpec, log_window: Float[Array, "*H"]) -> Float[Array, "*H"]:
    """w = exp(s_w) + 1 in tokens; infinite beyond the trained length if the spec says so.

    The second part is the paper's inference rule (v1 section 3.2): a tile whose window outgrew
    every training sequence looks at everything, without position encoding.
    """
    log_window = log_window.astype(accumulation_dtype(log_window))
    # What exp cannot hold is an infinite window. Without the inner `where` its gradient, zero,
    # would be multiplied by infinity.
    overflows = log_window >= np.log(jnp.finfo(log_window.dtype).max)
    # Above 1 also where the sum is rounded to it.
    smallest = 1 + jnp.finfo(log_window.dtype).eps
    window = jnp.maximum(jnp.exp(jnp.where(overflows, 0, log_window)) + 1, smallest)
    window = jnp.where(overflows, jnp.inf, window)
    if spec.infinite_windows:
        window = jnp.where(window > spec.trained_length, jnp.inf, window)
    return window


def tile_width(logit_width: Float[Array, "*H"]) -> Float[Array, "*H"]:
    """r = sigmoid(s_r): a key is accepted iff its similarity exceeds 1 - r. (v3 eq. 4)

    At least the distance from 1 to the number below it: narrower widths accept the same
    similarities, those rounded to 1, and end in a reciprocal of zero. At most that number.
    """
    logit_width = logit_width.astype(accumulation_dtype(logit_width))
    step = jnp.finfo(logit_width.dtype).epsneg
    return jnp.clip(jax.nn.sigmoid(logit_width), step, 1 - step)


class ScreeningTiles(Mixer):
    """H gated screening tiles. (v3 eq. 4-18)

        q, k, v = unit(x WQ), unit(x WK), unit(x WV)        MiPE turns q and k
        u       = TanhNorm(screening(q, k, v, w, r))
        y       = sum_h (u * tanh(silu(x WG))) exp(s_O) WO

    Projections run in the model's dtype; unit lengths, positions, trim, mask and TanhNorm in
    `promote_types(dtype, float32)`.
    """

    spec: ScreeningSpec

    def setup(self) -> None:
        s, c = self.spec, self.common
        sizes = {
            "embed": c.model_dim, "heads": s.num_heads, "key": s.key_dim, "value": s.value_dim
        }  # fmt: skip

        def matrix(name, deviation, *axes):
            shape = [sizes[axis] for axis in axes]
            return self.weight(name, nn.initializers.normal(deviation), shape, axes)

        def scalars(name, init):
            return self.weight(name, init, (s.num_heads,), ("heads",), decay=False)

        self.query = matrix("query", 0.1 / s.key_dim**0.5, "embed", "heads", "key")
        self.key = matrix("key", 0.1 / s.key_dim**0.5, "embed", "heads", "key")
        self.value = matrix("value", 0.1 / s.value_dim**0.5, "embed", "heads", "value")
        self.gate = matrix("gate", 0.1, "embed", "heads", "value")
        self.output = matrix("output", 0.1 / c.model_dim**0.5, "heads", "value", "embed")
        self.log_window = scalars("log_window", initial_log_window(s.window_threshold))
        self.logit_width = scalars("logit_width", nn.initializers.zeros)
        scale = -np.log(s.num_heads * c.num_layers) / 2
        self.log_output_scale = scalars("log_output_scale", nn.initializers.constant(scale))

    def __call__(
        self,
        x: Float[Array, "B T D"],
        layer: tuple[Int[Array, " H"], Int[Array, " H"]] | None,
        context: Context,
    ) -> Mixed:
        """Sum of the tiles' outputs, and the keys and values to write if a cache is read.

        `layer` are the offsets and sizes of the layer's rings.
        """
        if self.is_initializing():  # the parameters exist by now; nothing has to be compiled
            return Mixed(jnp.zeros_like(x))
        s, c = self.spec, self.common
        dtype = jnp.dtype(c.dtype)
        window, width = tile_window(s, self.log_window), tile_width(self.logit_width)

        def project(weight):
            return _matrix_product(x.astype(dtype), weight.astype(dtype), c.precision)

        # Of every row: the gradient of a window is summed over rows before devices add it up.
        positions = jnp.broadcast_to(context.positions, x.shape[:2])
        turns = mipe_turns(
            positions,
            window.astype(accumulation_dtype(x)),
            s.window_threshold,
            s.wrap_length if s.position_rule == "wrap" else None,
        )
        q = mipe(unit_norm(project(self.query)), turns).astype(dtype)
        k = mipe(unit_norm(project(self.key)), turns).astype(dtype)
        v = unit_norm(project(self.value)).astype(dtype)

        if layer is None:
            h = screening(
                q, k, v, window, width, context.segment_ids,
                implementation=s.implementation, precision=c.precision,
            )  # fmt: skip
        else:
            h = self._screen_with_cache(q, k, v, window, width, layer, context)
        h = mark_mixer_output(h)
        u = tanh_norm(h)
        gate = jnp.tanh(jax.nn.silu(project(self.gate).astype(u.dtype)))
        scale = jnp.exp(self.log_output_scale.astype(u.dtype))
        # Turned before it is scaled, so that its gradient is a product [D, H V]: XLA's CPU compiler
        # takes a quarter of the time for this one of what it takes for [H V, D].
        output_dhv = (jnp.moveaxis(self.output, -1, 0) * scale[:, None]).astype(dtype)
        y = jnp.einsum(
            "...f,df->...d",
            flat_tokens((u * gate).astype(dtype).reshape(*x.shape[:2], -1)),
            output_dhv.reshape(c.model_dim, -1),
            precision=c.precision,
        ).reshape(x.shape)
        for name, value in {
            "query": q, "key": k, "window": window, "width": width, "pre_tanhnorm": h,
            "screening_output": u, "gate": gate, "delta": y,
        }.items():  # fmt: skip
            self.sow("intermediates", name, value, reduce_fn=lambda _, new: new)
        return Mixed(y, None if layer is None else (k, v))

    def _screen_with_cache(self, q, k, v, window, width, rings, context):
        """Old keys from the rings plus the new tokens' own keys: the sums simply add."""
        s, c = self.spec, self.common
        cache, cursor, chunk = context.cache, context.cursor, context.chunk
        old = screening_decode(
            q, cache.keys, cache.values, jnp.where(chunk.continues, chunk.index, -1),
            cursor.length, cursor.start,
            *rings, window, width,
            summaries=cache.summaries, precision=c.precision,
        )  # fmt: skip
        if q.shape[1] == 1:  # a token reads itself at distance 0, where the mask is one
            similarity = jnp.sum(q.astype(old.dtype) * k.astype(old.dtype), axis=-1)
            alpha = trim(similarity.transpose(0, 2, 1)[..., None], width)[..., 0].transpose(0, 2, 1)
            alpha = jnp.where(chunk.segment_ids[..., None] != 0, alpha, 0)
            return old + alpha[..., None] * v.astype(old.dtype)
        new = screening(
            q, k, v.astype(old.dtype), window, width, context.segment_ids,
            implementation=s.implementation, precision=c.precision,
        )  # fmt: skip
        return old + new

    def init_cache(
        self, params: Any, layers: int, batch: int, max_length: int, dtype: jnp.dtype
    ) -> tuple["ScreeningCache", int]:
        """An empty part for the windows in `params`, those of all `layers`; not under jit."""
        if params is None:
            raise ValueError(
                "init_cache sizes its rings from the learned windows, so it needs params, got None"
            )
        window = tile_window(self.spec, params["log_window"])
        dims = self.spec.key_dim, self.spec.value_dim
        return init_screening_cache(
            window, batch, max_length, *dims, dtype, self.spec.block_summaries
        )

    def check_cache(self, part: Any, layers: int, cursor: Cursor) -> None:
        # The size of the buffer is that of the windows it was made for.
        keys = jax.tree.leaves(part.keys) if isinstance(part, ScreeningCache) else []
        slots = keys[0].shape[1] if keys and keys[0].ndim == 3 else SLOTS_MULTIPLE

        def empty() -> ScreeningCache:
            table = jnp.zeros((layers, self.spec.num_heads), jnp.int32)
            shape = (cursor.length.shape[0], slots, self.spec.key_dim, self.spec.value_dim)
            dtype = jnp.dtype(self.common.dtype)
            return empty_cache(table, table, shape, dtype, self.spec.block_summaries)

        check_like(part, jax.eval_shape(empty))

    def split_cache(
        self, part: "ScreeningCache"
    ) -> tuple[tuple[Int[Array, "N H"], Int[Array, "N H"]], "ScreeningCache"]:
        return (part.offset, part.size), part

    def write_cache(
        self, part: "ScreeningCache", chunk: Chunk, cursor: Cursor, written: tuple[Array, Array]
    ) -> "ScreeningCache":
        return write_screening_cache(part, chunk, cursor, *written)

    def forward_flops(self, length: int, windows: Any = None) -> float:
        """Projections, plus 2 (K + V) for every pair inside a window; a multiply-add counts two.

        `windows` [..., H] in tokens, of any number of layers; None stands for the initial ones.
        """
        s = self.spec
        if windows is None:
            windows = np.exp(np.linspace(0, np.log(s.window_threshold), s.num_heads)) + 1
        reach = np.minimum(np.ceil(np.asarray(windows, np.float64)), length)
        pairs = np.sum(reach * length - reach * (reach - 1) / 2)
        per_token = 2 * self.common.model_dim * (2 * s.key_dim + 3 * s.value_dim) * reach.size
        return float(per_token * length + 2 * (s.key_dim + s.value_dim) * pairs)


def _matrix_product(x, weight, precision):
    """x [B, T, D] times weight [D, ...], as one product of matrices.

    XLA's CPU compiler transposes whole activations for the weight gradient of the einsum that says
    the same.
    """
    product = jnp.dot(flat_tokens(x), weight.reshape(len(weight), -1), precision=precision)
    return product.reshape(*x.shape[:2], *weight.shape[1:])


def initial_log_window(threshold: float) -> Any:
    """Initialiser linspace(0, log w_th, H): windows from 2 to w_th + 1 in every layer."""

    def init(key: Array, shape: tuple[int, ...], dtype: jnp.dtype) -> Float[Array, " H"]:
        del key
        return jnp.linspace(0, np.log(threshold), *shape, dtype=dtype)

    return init
