"""Multiscreen, the language model of "Screening Is Enough" (arXiv:2604.01178, v3).

    x_0 = exp(s_E) unit(W_E)[token]
    x_l = x_{l-1} + sum_h tile_{l,h}(x_{l-1})        l = 1 .. N, see mixers/screening.py
    z   = x_N (exp(s_F) unit(W_E))^T                 logits

No norms, no feed-forward, no biases, no softmax anywhere inside. The residual stream is kept in
`promote_types(dtype, float32)`: nothing renormalises it, so small updates must not be rounded away.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from multiscreen_jax import fields
from multiscreen_jax.cache import ModelCache
from multiscreen_jax.layers.branch import Common
from multiscreen_jax.layers.embedding import check_segments, check_tokens, lookup
from multiscreen_jax.layers.parameters import weight
from multiscreen_jax.layers.residuals import NoNorm
from multiscreen_jax.layers.stack import check_remat
from multiscreen_jax.mixers.screening import ScreeningSpec
from multiscreen_jax.models import trunk
from multiscreen_jax.models.architecture import Architecture, Contract
from multiscreen_jax.models.fit import check_params, count_parameters
from multiscreen_jax.models.language_model import LanguageModel
from multiscreen_jax.models.multiscreen_names import SOURCES
from multiscreen_jax.models.trunk import Layer, Stage, Trunk
from pallas_kernels.common.numerics import unit_norm

__all__ = ["Multiscreen", "MultiscreenConfig"]

PSI = {"4m": 8, "28m": 16, "286m": 32, "1.3b": 48, "4b": 64}


def shape_of(psi: int) -> dict[str, int]:
    """The paper's scaling rule."""
    return {"model_dim": psi**2, "num_layers": psi, "num_heads": psi}


@dataclasses.dataclass(frozen=True, kw_only=True)
class MultiscreenConfig:
    """Shape and settings of a Multiscreen model.

    Attributes:
        vocab_size: O.
        model_dim, num_layers, num_heads: D, N, H (the paper's d_E, N_L, N_H).
        key_dim, value_dim: K >= 2 and V of every tile.
        window_threshold: w_th, in tokens: windows start below it, and a tile whose window exceeds
            it has no position encoding.
        position_rule: "absolute" (the paper's) or "wrap", the rule of two PyTorch ports, in which
            positions from `wrap_length` on count modulo the window.
        trained_length: longest training sequence so far, in tokens; continued training updates it.
        infinite_windows: inference rule: windows above `trained_length` become infinite.
        embedding_init_scale: standard deviation of the embedding rows times sqrt(model_dim). The
            rows are normalised, so this leaves the initial function alone and only sets how far
            one optimiser step turns a row: 0.1 is the paper's, small batches learn faster with 1.
        dtype, param_dtype: of the projections, and of the parameters.
        precision: of all products: None (the backend's default), "default", "high", "highest".
        remat: what the backward pass keeps, see `layers.stack.LayerStack`. On CPUs "mixer" is the
            fastest: it keeps what screening returns, which is then not computed a second time.
        unroll_layers: run layers in a Python loop, for debugging.
        implementation: of the screening op, see `pallas_kernels.screening`. Cached tokens take the
            platform's decode kernel where there is one.
        block_summaries: keep summaries of blocks of keys in the cache. Decoding then rejects most
            blocks of an infinite tile unread, and gives the same result; see
            `pallas_kernels.screening.summaries`.
    """

    vocab_size: int
    model_dim: int
    num_layers: int
    num_heads: int
    key_dim: int = 16
    value_dim: int = 64
    window_threshold: float = 256.0
    position_rule: str = "absolute"
    wrap_length: int | None = None
    trained_length: int | None = None
    infinite_windows: bool = False
    embedding_init_scale: float = 0.1
    dtype: str = "float32"
    param_dtype: str = "float32"
    precision: str | None = None
    remat: str = "none"
    unroll_layers: bool = False
    implementation: str | tuple[str, ...] | None = None
    block_summaries: bool = False

    def __post_init__(self) -> None:
        fields.positive_integers(self, "vocab_size", "model_dim", "num_layers")
        fields.positive_numbers(self, "embedding_init_scale")
        for field in ("dtype", "param_dtype"):
            object.__setattr__(self, field, fields.dtype_name(field, getattr(self, field)))
        fields.precision(self.precision)
        fields.booleans(self, "unroll_layers")
        check_remat(self.remat)
        fields.take(self, self.tiles())

    @classmethod
    def from_psi(
        cls, psi: int, *, vocab_size: int = 50257, **overrides: Any
    ) -> "MultiscreenConfig":
        """The paper's scaling rule: psi layers of psi tiles, model_dim psi^2."""
        if not fields.is_integer(psi) or psi < 1:
            raise ValueError(f"psi must be an integer >= 1, got {psi!r}")
        return cls(**{"vocab_size": vocab_size, **shape_of(psi), **overrides})

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> "MultiscreenConfig":
        """One of the paper's sizes: "4m", "28m", "286m", "1.3b", "4b" (with 50257 tokens)."""
        return ARCHITECTURE.preset(name, **overrides)

    def tiles(self) -> ScreeningSpec:
        """The mixer of every layer."""
        own = {field.name: getattr(self, field.name) for field in dataclasses.fields(ScreeningSpec)}
        return ScreeningSpec(**own)

    def stages(self) -> tuple[Stage, ...]:
        return (Stage("layers", (Layer(self.tiles(), residual=NoNorm()),), self.num_layers),)

    @property
    def common(self) -> Common:
        """Facts of this model that its tiles may know; their initial values are their own."""
        return Common(
            model_dim=self.model_dim, num_layers=self.num_layers, dtype=self.dtype,
            param_dtype=self.param_dtype, precision=self.precision,
        )  # fmt: skip

    def only_for_inference(self) -> tuple[tuple[str, str], ...]:
        """(field, what is allowed) of settings that training must not have."""
        rule = "False: the inference rule is not for training"
        return (("infinite_windows", rule),) if self.infinite_windows else ()

    def parameter_count(self) -> int:
        """Numbers in all parameters, counted of their shapes."""
        return count_parameters(Multiscreen(self))

    def forward_flops(self, length: int, windows: Any = None) -> float:
        """FLOPs of one forward pass over one sequence (a multiply-add counts two).

        Projections and logits, plus 2 (K + V) for every pair inside a window. `windows` [N, H]
        in tokens; None stands for the initial ones.
        """
        mixer = self.tiles().build(self.common, parent=None)
        if windows is None:
            tiles = self.num_layers * mixer.forward_flops(length)
        else:
            tiles = mixer.forward_flops(length, windows)
        return 2 * length * self.vocab_size * self.model_dim + tiles


class TiedEmbedding(nn.Module):
    """Unit-length rows, used at both ends with a learned scale each."""

    config: MultiscreenConfig

    def setup(self) -> None:
        c = self.config
        deviation = c.embedding_init_scale / c.model_dim**0.5
        shape, axes = (c.vocab_size, c.model_dim), ("vocabulary", "embed")
        init = nn.initializers.normal(deviation)
        self.rows = weight(self, "rows", init, shape, axes, c.param_dtype)

        def scale(name: str, value: float) -> Array:
            init = nn.initializers.constant(value)
            return weight(self, name, init, (), (), c.param_dtype, decay=False)

        self.log_input_scale = scale("log_input_scale", 0)
        self.log_output_scale = scale("log_output_scale", np.log(c.model_dim) / 2)

    def encode(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        rows = unit_norm(lookup(self.rows, tokens))
        return rows * jnp.exp(self.log_input_scale.astype(rows.dtype))

    def output_rows(self) -> Float[Array, "O D"]:
        rows = unit_norm(self.rows)
        return rows * jnp.exp(self.log_output_scale.astype(rows.dtype))


class Multiscreen(LanguageModel):
    """The model; `apply({"params": params}, tokens)` gives a `ModelOutput`."""

    config: MultiscreenConfig

    def setup(self) -> None:
        c = self.config
        self.embedding = TiedEmbedding(c)
        self.blocks = Trunk(c.common, c.stages(), c.remat, c.unroll_layers)
        nn.share_scope(self, self.blocks)  # its layers lie at the top of the tree

    def trunk(
        self,
        tokens: Int[Array, "B T"],
        segment_ids: Int[Array, "B T"] | None = None,
        cache: ModelCache | None = None,
        key: Key[Array, ""] | None = None,
    ) -> tuple[Float[Array, "B T D"], ModelCache | None]:
        """The residual stream after the last layer [B, T, D], and the new cache."""
        check_tokens(tokens, self.config.vocab_size)
        check_segments(segment_ids, tokens.shape, at_end=cache is not None)
        self.check_own_params()
        return self.blocks(self.embedding.encode(tokens), segment_ids, cache)

    def output_rows(self) -> Float[Array, "O D"]:
        """exp(s_F) unit(W_E): logits are the residual stream times this, transposed."""
        return self.embedding.output_rows()

    def init_cache(self, params: Any, batch: int, max_length: int, dtype: Any = None) -> ModelCache:
        """An empty cache for `batch` rows of up to `max_length` tokens; call it outside jit.

        Tiles with a finite window keep a ring of ceil(window) entries, whatever `max_length` is.
        """
        c = self.config
        dtype = fields.cache_dtype(c.dtype, dtype)
        check_params(self, params)
        return trunk.init_cache(c.common, c.stages(), params, batch, max_length, dtype)


ARCHITECTURE = Architecture(
    name="multiscreen",
    config=MultiscreenConfig,
    model=Multiscreen,
    presets={
        **{size: {"vocab_size": 50257, **shape_of(psi)} for size, psi in PSI.items()},
        # For laptops: embedding rows of norm one, so that small batches learn.
        "tiny": {
            "vocab_size": 256, "model_dim": 64, "num_layers": 4, "num_heads": 4, "value_dim": 32,
            "embedding_init_scale": 1.0,
        },
    },
    paper="Screening Is Enough, arXiv:2604.01178 v3",
    sources=SOURCES,
    contract=Contract(
        fields={
            "vocab_size": 61, "model_dim": 16, "num_layers": 2, "num_heads": 2, "key_dim": 4,
            "value_dim": 6, "window_threshold": 9.0,
        },
        tolerance=2e-4,
    ),
)  # fmt: skip
