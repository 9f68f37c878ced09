"""Tables of the linear family: flash-linear-attention (fla), and Log-Linear Attention's authors.

Mamba-2 keeps one fused projection with the rows of z | x | B | C | dt (and the levels after them),
and one convolution over the channels of x | B | C; ours are apart: gate, value, key, query, step,
level. A model whose layers follow a pattern has no counterpart here.
"""

from dataclasses import replace

from multiscreen_jax.convert.table import Constant, Copy, Row, Source
from multiscreen_jax.models.delta_net import DeltaNetConfig
from multiscreen_jax.models.gated_delta_net import GatedDeltaNetConfig
from multiscreen_jax.models.log_linear_gated_delta_net import LogLinearGatedDeltaNetConfig
from multiscreen_jax.models.log_linear_mamba2 import LogLinearMamba2Config
from multiscreen_jax.models.mamba2 import Mamba2Config
from multiscreen_jax.models.retnet import RetNetConfig

FIELDS = {
    "o": "vocab_size",
    "d": "model_dim",
    "n": "num_layers",
    "h": "num_heads",
    "k": "key_dim",
    "v": "value_dim",
    "f": "feed_forward_dim",
}
CONVOLVED_FIELDS = {**FIELDS, "w": "conv_width"}
MAMBA2_FIELDS = {**CONVOLVED_FIELDS, "g": "num_groups"}
_WITH_FEED_FORWARD = ("feed_forward_dim", True)


def _ends(prefix: str, final_norm: str) -> tuple[Row, ...]:
    """Both tables and the last norm."""
    rows = {"embedding/rows": "o d"}
    head = {"unembedding/rows": "o d"}
    gain = ("final_norm_gain", True)
    return (
        Row(f"{prefix}.embeddings.weight", "o d", rows),
        Row(f"{prefix}.{final_norm}.weight", "d", {"final_norm/scale": "d"}, when=gain),
        Row("lm_head.weight", "o d", head, when=("tie_embeddings", False)),
    )


def _tied_head(prefix: str) -> tuple[Copy, ...]:
    return (
        Copy("lm_head.weight", of=f"{prefix}.embeddings.weight", when=("tie_embeddings", True)),
    )


def _no_gain(prefix: str, final_norm: str) -> tuple[Constant, ...]:
    advice, when = "set final_norm_gain=True", ("final_norm_gain", False)
    return (Constant(f"{prefix}.{final_norm}.weight", "d", 1.0, advice, when),)


def _feed_forward(layer: str) -> tuple[Row, ...]:
    ours, when = "layers/feed_forward", _WITH_FEED_FORWARD
    return (
        Row(f"{layer}.mlp_norm.weight", "d", {f"{ours}_norm/scale": "d"}, when=when),
        Row(f"{layer}.mlp.gate_proj.weight", "f d", {f"{ours}/gate": "d f"}, when=when),
        Row(f"{layer}.mlp.up_proj.weight", "f d", {f"{ours}/up": "d f"}, when=when),
        Row(f"{layer}.mlp.down_proj.weight", "d f", {f"{ours}/down": "f d"}, when=when),
    )


# Delta rules and retention: projections of their own for each role.

_LAYER = "model.layers.{layer}"
_ATTN = f"{_LAYER}.attn"
_OURS = "layers/mixer"
_NORM = Row(f"{_LAYER}.attn_norm.weight", "d", {"layers/mixer_norm/scale": "d"})
_PROJECTIONS = (
    Row(f"{_ATTN}.q_proj.weight", "(h k) d", {f"{_OURS}/query": "d h k"}),
    Row(f"{_ATTN}.k_proj.weight", "(h k) d", {f"{_OURS}/key": "d h k"}),
    Row(f"{_ATTN}.v_proj.weight", "(h v) d", {f"{_OURS}/value": "d h v"}),
    Row(f"{_ATTN}.o_proj.weight", "d (h v)", {f"{_OURS}/output": "h v d"}),
)
_GATE = Row(f"{_ATTN}.g_proj.weight", "(h v) d", {f"{_OURS}/gate": "d h v"})
_DELTA = (
    *_PROJECTIONS,
    replace(_GATE, when=("output_gate", True)),
    Row(f"{_ATTN}.b_proj.weight", "h d", {f"{_OURS}/beta": "d h"}),
    Row(f"{_ATTN}.q_conv1d.weight", "(h k) 1 w", {f"{_OURS}/query_conv/kernel": "w h k"}),
    Row(f"{_ATTN}.k_conv1d.weight", "(h k) 1 w", {f"{_OURS}/key_conv/kernel": "w h k"}),
    Row(f"{_ATTN}.v_conv1d.weight", "(h v) 1 w", {f"{_OURS}/value_conv/kernel": "w h v"}),
    Row(f"{_ATTN}.o_norm.weight", "v", {f"{_OURS}/output_norm/scale": "v"}),
)
_DECAY = (
    Row(f"{_ATTN}.a_proj.weight", "h d", {f"{_OURS}/step": "d h"}),
    Row(f"{_ATTN}.A_log", "h", {f"{_OURS}/log_rate": "h"}),
    Row(f"{_ATTN}.dt_bias", "h", {f"{_OURS}/step_bias": "h"}),
)

RETNET = Source(
    name="retnet/fla",
    config_class=RetNetConfig,
    fields=FIELDS,
    rows=(
        *_ends("model", "norm"),
        _NORM,
        *_PROJECTIONS,
        _GATE,
        Row(f"{_ATTN}.g_norm_swish_gate.weight", "v", {f"{_OURS}/output_norm/scale": "v"}),
        *_feed_forward(_LAYER),
    ),
    copies=_tied_head("model"),
    constants=_no_gain("model", "norm"),
    notes=(
        "RetNetForCausalLM of flash-linear-attention, commit bc3b101, with an output gate and "
        "without short convolutions; norm_eps and the number of heads are in its config only."
    ),
)

DELTA_NET = Source(
    name="deltanet/fla",
    config_class=DeltaNetConfig,
    fields=CONVOLVED_FIELDS,
    rows=(*_ends("model", "norm"), _NORM, *_DELTA, *_feed_forward(_LAYER)),
    copies=_tied_head("model"),
    constants=_no_gain("model", "norm"),
    notes=(
        "DeltaNetForCausalLM of flash-linear-attention, commit bc3b101, with beta, SiLU and L2 "
        "norms of queries and keys. use_gate is our output_gate, allow_neg_eigval our "
        "negative_eigenvalues."
    ),
)

GATED_DELTA_NET = Source(
    name="gated_deltanet/fla",
    config_class=GatedDeltaNetConfig,
    fields=CONVOLVED_FIELDS,
    rows=(*_ends("model", "norm"), _NORM, *_DELTA, *_DECAY, *_feed_forward(_LAYER)),
    copies=_tied_head("model"),
    constants=_no_gain("model", "norm"),
    notes=(
        "GatedDeltaNetForCausalLM of flash-linear-attention, commit bc3b101. head_dim is our "
        "key_dim and head_dim * expand_v our value_dim; use_gate is our output_gate, "
        "allow_neg_eigval our negative_eigenvalues. More value heads than heads have no "
        "counterpart."
    ),
)

LOG_LINEAR_GATED_DELTA_NET = Source(
    name="log_linear_gdn/hattention",
    config_class=LogLinearGatedDeltaNetConfig,
    fields={**CONVOLVED_FIELDS, "l": "num_levels"},
    rows=(
        *GATED_DELTA_NET.rows,
        Row(f"{_ATTN}.l_proj.weight", "(h l) d", {f"{_OURS}/level": "d h l"}),
        Row(f"{_ATTN}.L", "h l", {f"{_OURS}/level_gain": "h l"}),
    ),
    copies=_tied_head("model"),
    constants=_no_gain("model", "norm"),
    notes=(
        "HGatedDeltaNetForCausalLM of HanGuo97/log-linear-attention, commit 7f86441, 15 levels. "
        "The names and shapes are those of gated_deltanet/fla with two more a layer."
    ),
)

# Mamba-2: one fused projection and one convolution.

_BLOCK = "backbone.layers.{layer}"
_MIXER = f"{_BLOCK}.mixer"
_SCAN = (
    Row(
        f"{_MIXER}.conv1d.weight",
        "[h v | g k | g k] 1 w",
        {
            f"{_OURS}/value_conv/kernel": "w h v",
            f"{_OURS}/key_conv/kernel": "w g k",
            f"{_OURS}/query_conv/kernel": "w g k",
        },
    ),
    Row(
        f"{_MIXER}.conv1d.bias",
        "[h v | g k | g k]",
        {
            f"{_OURS}/value_conv/bias": "h v",
            f"{_OURS}/key_conv/bias": "g k",
            f"{_OURS}/query_conv/bias": "g k",
        },
    ),
    Row(f"{_MIXER}.dt_bias", "h", {f"{_OURS}/step_bias": "h"}),
    Row(f"{_MIXER}.A_log", "h", {f"{_OURS}/log_rate": "h"}),
    Row(f"{_MIXER}.D", "h", {f"{_OURS}/skip": "h"}),
    Row(f"{_MIXER}.norm.weight", "(h v)", {f"{_OURS}/output_norm/head_scale": "h v"}),
    Row(f"{_MIXER}.out_proj.weight", "d (h v)", {f"{_OURS}/output": "h v d"}),
)
_FUSED = {
    f"{_OURS}/gate": "d h v",
    f"{_OURS}/value": "d h v",
    f"{_OURS}/key": "d g k",
    f"{_OURS}/query": "d g k",
    f"{_OURS}/step": "d h",
}
_MIXER_NORM = Row(f"{_BLOCK}.mixer_norm.weight", "d", {"layers/mixer_norm/scale": "d"})

MAMBA2 = Source(
    name="mamba2/fla",
    config_class=Mamba2Config,
    fields=MAMBA2_FIELDS,
    rows=(
        *_ends("backbone", "norm_f"),
        replace(_MIXER_NORM, name=f"{_BLOCK}.norm.weight", when=("feed_forward_dim", False)),
        replace(_MIXER_NORM, when=_WITH_FEED_FORWARD),
        Row(f"{_MIXER}.in_proj.weight", "[h v | h v | g k | g k | h] d", _FUSED),
        *_SCAN,
        *_feed_forward(_BLOCK),
    ),
    copies=_tied_head("backbone"),
    constants=_no_gain("backbone", "norm_f"),
    notes=(
        "Mamba2ForCausalLM of flash-linear-attention, commit bc3b101, and of transformers (with "
        "several groups its gated norm takes the mean over all heads); with feed-forward layers "
        "the mamba2mlp of HanGuo97/log-linear-attention, commit 7f86441. state_size is our "
        "key_dim, head_dim our value_dim, n_groups our num_groups. Biases of the projections, D by "
        "channel and limits of dt have no counterpart."
    ),
)

LOG_LINEAR_MAMBA2 = Source(
    name="log_linear_mamba2/hattention",
    config_class=LogLinearMamba2Config,
    fields={**MAMBA2_FIELDS, "l": "num_levels"},
    rows=(
        *_ends("backbone", "norm_f"),
        _MIXER_NORM,
        Row(
            f"{_MIXER}.in_proj.weight",
            "[h v | h v | g k | g k | h | h l] d",
            {**_FUSED, f"{_OURS}/level": "d h l"},
        ),
        *_SCAN,
        Row(f"{_MIXER}.L", "h l", {f"{_OURS}/level_gain": "h l"}),
        *_feed_forward(_BLOCK),
    ),
    copies=_tied_head("backbone"),
    constants=_no_gain("backbone", "norm_f"),
    notes=(
        "HAttentionForCausalLM of HanGuo97/log-linear-attention, commit 7f86441, 15 levels. "
        "state_size is our key_dim, head_dim our value_dim. With several groups its gated norm "
        "still takes the mean over all heads, ours over those of a group."
    ),
)

LOG_LINEAR_MAMBA2_FLA = replace(
    LOG_LINEAR_MAMBA2,
    name="log_linear_mamba2/fla",
    notes=(
        "LogLinearMamba2ForCausalLM of flash-linear-attention, commit bc3b101: the names and "
        "shapes of log_linear_mamba2/hattention. It drops what is older than its levels hold."
    ),
)

TABLES = (
    RETNET,
    DELTA_NET,
    MAMBA2,
    GATED_DELTA_NET,
    LOG_LINEAR_MAMBA2,
    LOG_LINEAR_MAMBA2_FLA,
    LOG_LINEAR_GATED_DELTA_NET,
)
