"""Names and layouts of flash-linear-attention (fla), commit bc3b101, and of Log-Linear Attention's
authors, commit 7f86441 of HanGuo97/log-linear-attention, who keep to them.

Mamba-2 keeps one fused projection with the rows of z | x | B | C | dt (and the levels after them),
and one convolution over the channels of x | B | C; ours are apart: gate, value, key, query, step,
level.
"""

from dataclasses import replace

from multiscreen_jax.models.conversion import Constant, Copy, Row, Source

LAYER = "model.layers.{layer}"
BLOCK = "backbone.layers.{layer}"  # Mamba-2's
_FIELDS = {
    "o": "vocab_size",
    "d": "model_dim",
    "n": "num_layers",
    "h": "num_heads",
    "k": "key_dim",
    "v": "value_dim",
    "f": "feed_forward_dim",
    "w": "conv_width",
    "g": "num_groups",
    "l": "num_levels",
}


def fla(name: str, *rows: Row, notes: str, layer: str = LAYER, norm: str = "norm") -> Source:
    """The table of one of its models: `rows` are those of a layer but for the feed-forward."""
    top = layer.partition(".")[0]
    feed_forward = (
        _row(f"{layer}.mlp_norm.weight", "d", "feed_forward_norm/scale", "d"),
        _row(f"{layer}.mlp.gate_proj.weight", "f d", "feed_forward/gate", "d f"),
        _row(f"{layer}.mlp.up_proj.weight", "f d", "feed_forward/up", "d f"),
        _row(f"{layer}.mlp.down_proj.weight", "d f", "feed_forward/down", "f d"),
    )
    tied, no_gain = ("tie_embeddings", True), ("final_norm_gain", False)
    table, gain = f"{top}.embeddings.weight", f"{top}.{norm}.weight"
    return Source(
        name=name,
        fields=_FIELDS,
        rows=(
            _row(table, "o d", "embedding/rows", "o d"),
            _row(gain, "d", "final_norm/scale", "d"),
            _row("lm_head.weight", "o d", "unembedding/rows", "o d"),
            *rows,
            *feed_forward,
        ),
        copies=(Copy("lm_head.weight", of=table, when=tied),),
        constants=(Constant(gain, "d", 1.0, "set final_norm_gain=True", when=no_gain),),
        notes=notes,
    )


def _row(name: str, axes: str, part: str, ours: str) -> Row:
    return Row(name, axes, {part: ours})


def _mixer(name: str, axes: str, part: str, ours: str) -> Row:
    return _row(f"{LAYER}.attn.{name}", axes, f"mixer/{part}", ours)


def _scan(name: str, axes: str, part: str, ours: str) -> Row:
    return _row(f"{BLOCK}.mixer.{name}", axes, f"mixer/{part}", ours)


# Delta rules and retention: projections of their own for each role.

PROJECTIONS = (
    _row(f"{LAYER}.attn_norm.weight", "d", "mixer_norm/scale", "d"),
    _mixer("q_proj.weight", "(h k) d", "query", "d h k"),
    _mixer("k_proj.weight", "(h k) d", "key", "d h k"),
    _mixer("v_proj.weight", "(h v) d", "value", "d h v"),
    _mixer("o_proj.weight", "d (h v)", "output", "h v d"),
    _mixer("g_proj.weight", "(h v) d", "gate", "d h v"),
)
RETENTION = (*PROJECTIONS, _mixer("g_norm_swish_gate.weight", "v", "output_norm/scale", "v"))
DELTA = (
    *PROJECTIONS,
    _mixer("b_proj.weight", "h d", "beta", "d h"),
    _mixer("q_conv1d.weight", "(h k) 1 w", "query_conv/kernel", "w h k"),
    _mixer("k_conv1d.weight", "(h k) 1 w", "key_conv/kernel", "w h k"),
    _mixer("v_conv1d.weight", "(h v) 1 w", "value_conv/kernel", "w h v"),
    _mixer("o_norm.weight", "v", "output_norm/scale", "v"),
)
GATED_DELTA = (
    *DELTA,
    _mixer("a_proj.weight", "h d", "step", "d h"),
    _mixer("A_log", "h", "log_rate", "h"),
    _mixer("dt_bias", "h", "step_bias", "h"),
)
LOG_LINEAR_GATED_DELTA = (
    *GATED_DELTA,
    _mixer("l_proj.weight", "(h l) d", "level", "d h l"),
    _mixer("L", "h l", "level_gain", "h l"),
)

# Mamba-2: one fused projection and one convolution.

_FUSED = {
    "mixer/gate": "d h v",
    "mixer/value": "d h v",
    "mixer/key": "d g k",
    "mixer/query": "d g k",
    "mixer/step": "d h",
}
_NORM = _row(f"{BLOCK}.mixer_norm.weight", "d", "mixer_norm/scale", "d")
_SCAN = (
    Row(
        f"{BLOCK}.mixer.conv1d.weight",
        "[h v | g k | g k] 1 w",
        {
            "mixer/value_conv/kernel": "w h v",
            "mixer/key_conv/kernel": "w g k",
            "mixer/query_conv/kernel": "w g k",
        },
    ),
    Row(
        f"{BLOCK}.mixer.conv1d.bias",
        "[h v | g k | g k]",
        {
            "mixer/value_conv/bias": "h v",
            "mixer/key_conv/bias": "g k",
            "mixer/query_conv/bias": "g k",
        },
    ),
    _scan("dt_bias", "h", "step_bias", "h"),
    _scan("A_log", "h", "log_rate", "h"),
    _scan("D", "h", "skip", "h"),
    _scan("norm.weight", "(h v)", "output_norm/head_scale", "h v"),
    _scan("out_proj.weight", "d (h v)", "output", "h v d"),
)
MAMBA2 = (
    # Its norm is named after whether a feed-forward follows.
    replace(_NORM, name=f"{BLOCK}.norm.weight", when=("feed_forward_dim", False)),
    replace(_NORM, when=("feed_forward_dim", True)),
    Row(f"{BLOCK}.mixer.in_proj.weight", "[h v | h v | g k | g k | h] d", _FUSED),
    *_SCAN,
)
LOG_LINEAR_MAMBA2 = (
    _NORM,
    Row(
        f"{BLOCK}.mixer.in_proj.weight",
        "[h v | h v | g k | g k | h | h l] d",
        {**_FUSED, "mixer/level": "d h l"},
    ),
    *_SCAN,
    _scan("L", "h l", "level_gain", "h l"),
)
