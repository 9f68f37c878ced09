"""Mamba-2, "Transformers are SSMs" (arXiv:2405.21060), alone or with feed-forward layers.

x = x + mamba2(norm(x))                          mixers/mamba2.py
x = x + swiglu(norm(x))                          where feed_forward_dim is not 0
"""

import dataclasses

from multiscreen_jax.mixers.mamba2 import Mamba2Spec
from multiscreen_jax.models.architecture import Architecture, Contract
from multiscreen_jax.models.decoder import Decoder
from multiscreen_jax.models.fla_names import BLOCK, MAMBA2, fla
from multiscreen_jax.models.linear import SMALL, LinearConfig

__all__ = ["Mamba2", "Mamba2Config"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mamba2Config(LinearConfig):
    """Shape and settings of a Mamba-2, beside those of `LinearConfig`.

    Attributes:
        key_dim, value_dim: the state size and the head dimension of the paper.
        num_groups: G, a divisor of H: heads of a group share keys and queries.
        feed_forward_dim: 0, the paper's, is none.
        conv_width: of the short convolutions.
    """

    feed_forward_dim: int | None = 0
    norm_eps: float = 1e-5
    num_groups: int = 1
    conv_width: int = 4

    def mixer(self) -> Mamba2Spec:
        return Mamba2Spec(**self.own_fields(Mamba2Spec))


class Mamba2(Decoder):
    """The model; `apply({"params": params}, tokens)` gives a `ModelOutput`."""

    config: Mamba2Config


ARCHITECTURE = Architecture(
    name="mamba2",
    config=Mamba2Config,
    model=Mamba2,
    presets={
        "tiny": {
            "vocab_size": 256, "model_dim": 64, "num_layers": 4, "num_heads": 4, "key_dim": 32,
            "value_dim": 32,
        },
        "mlp-tiny": {
            "vocab_size": 256, "model_dim": 64, "num_layers": 4, "num_heads": 4, "key_dim": 32,
            "value_dim": 32, "feed_forward_dim": 176,
        },
        # The baseline of the Log-Linear Attention paper, 802M.
        "mlp-800m": {
            "vocab_size": 32000, "model_dim": 1536, "num_layers": 21, "num_heads": 48,
            "key_dim": 128, "value_dim": 64, "feed_forward_dim": 4096, "initializer_range": 0.006,
        },
    },
    paper="Transformers are SSMs, arXiv:2405.21060",
    sources=(
        fla(
            "mamba2/fla",
            *MAMBA2,
            layer=BLOCK,
            norm="norm_f",
            notes=(
                "Mamba2ForCausalLM of flash-linear-attention, and of transformers (with several "
                "groups its gated norm takes the mean over all heads); with feed-forward layers "
                "the mamba2mlp of HanGuo97/log-linear-attention. state_size is our key_dim, "
                "head_dim our value_dim, n_groups our num_groups. Biases of the projections, D by "
                "channel and limits of dt have no counterpart."
            ),
        ),
    ),
    contract=Contract(fields={**SMALL, "num_heads": 4, "num_groups": 2}),
)  # fmt: skip
