"""Log-Linear Mamba-2, of "Log-Linear Attention" (arXiv:2506.04761).

    x = x + mixer(norm(x))            mixers/log_linear_mamba2.py
    x = x + swiglu(norm(x))

Its parent with one change: the past is kept in states by age, each with a weight of its own.
"""

import dataclasses

from multiscreen_jax.mixers.log_linear import Levels
from multiscreen_jax.mixers.log_linear_mamba2 import LogLinearMamba2Spec
from multiscreen_jax.models import mamba2
from multiscreen_jax.models.architecture import Architecture, Contract
from multiscreen_jax.models.decoder import Decoder
from multiscreen_jax.models.fla_names import BLOCK, LOG_LINEAR_MAMBA2, fla
from multiscreen_jax.models.linear import SMALL
from multiscreen_jax.models.mamba2 import Mamba2Config

__all__ = ["LogLinearMamba2", "LogLinearMamba2Config"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogLinearMamba2Config(Levels, Mamba2Config):
    """Shape and settings of a Log-Linear Mamba-2: those of `Mamba2Config`, and `Levels`.

    Attributes:
        feed_forward_dim: None, as in the paper, is 8 D / 3 rounded up to a multiple of 256.
    """

    feed_forward_dim: int | None = None

    def mixer(self) -> LogLinearMamba2Spec:
        return LogLinearMamba2Spec(**self.own_fields(LogLinearMamba2Spec))


class LogLinearMamba2(Decoder):
    """The model; `apply({"params": params}, tokens)` gives a `ModelOutput`."""

    config: LogLinearMamba2Config


_HATTENTION = fla(
    "log_linear_mamba2/hattention",
    *LOG_LINEAR_MAMBA2,
    layer=BLOCK,
    norm="norm_f",
    notes=(
        "HAttentionForCausalLM of HanGuo97/log-linear-attention, 15 levels. state_size is our "
        "key_dim, head_dim our value_dim. With several groups its gated norm still takes the mean "
        "over all heads, ours over those of a group."
    ),
)
_FLA = dataclasses.replace(
    _HATTENTION,
    name="log_linear_mamba2/fla",
    notes=(
        "LogLinearMamba2ForCausalLM of flash-linear-attention: the names and shapes of "
        "log_linear_mamba2/hattention. It drops what is older than its levels hold."
    ),
)

ARCHITECTURE = Architecture(
    name="log-linear-mamba2",
    config=LogLinearMamba2Config,
    model=LogLinearMamba2,
    presets={
        "tiny": {**mamba2.ARCHITECTURE.presets["mlp-tiny"], "num_levels": 12},
        "800m": mamba2.ARCHITECTURE.presets["mlp-800m"],
    },
    paper="Log-Linear Attention, arXiv:2506.04761, section 3.3",
    sources=(_HATTENTION, _FLA),
    contract=Contract(
        fields={
            **SMALL,
            "num_heads": 4,
            "num_groups": 2,
            "feed_forward_dim": 24,
            "num_levels": 9,
            "max_documents": 4,
        },
    ),
)
