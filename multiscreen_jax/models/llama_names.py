"""Names, layouts and settings of transformers' LlamaForCausalLM, for it and all that follow it."""

from collections.abc import Callable, Mapping
from typing import Any

from multiscreen_jax.models.conversion import Constant, Copy, Row, Source

_LAYER = "model.layers.{layer}"
_FIELDS = {
    "o": "vocab_size",
    "d": "model_dim",
    "h": "num_heads",
    "g": "num_kv_heads",
    "k": "head_dim",
    "f": "feed_forward_dim",
    "n": "num_layers",
}


def row(name: str, axes: str, part: str, ours: str | None = None) -> Row:
    """A row of a layer: its name and path inside the layer; `ours` are our axes, if others."""
    return Row(f"{_LAYER}.{name}", axes, {part: axes if ours is None else ours})


ATTENTION = (
    row("self_attn.q_proj.weight", "(h k) d", "attention/query", "d h k"),
    row("self_attn.k_proj.weight", "(g k) d", "attention/key", "d g k"),
    row("self_attn.v_proj.weight", "(g k) d", "attention/value", "d g k"),
    row("self_attn.o_proj.weight", "d (h k)", "attention/output", "h k d"),
    row("self_attn.q_proj.bias", "(h k)", "attention/query_bias", "h k"),
    row("self_attn.k_proj.bias", "(g k)", "attention/key_bias", "g k"),
    row("self_attn.v_proj.bias", "(g k)", "attention/value_bias", "g k"),
    row("self_attn.o_proj.bias", "d", "attention/output_bias"),
)
_FEED_FORWARD = (
    row("mlp.gate_proj.weight", "f d", "feed_forward/gate", "d f"),
    row("mlp.up_proj.weight", "f d", "feed_forward/up", "d f"),
    row("mlp.down_proj.weight", "d f", "feed_forward/down", "f d"),
)
_NORMS = (
    row("input_layernorm.weight", "d", "attention_norm/scale"),
    row("post_attention_layernorm.weight", "d", "feed_forward_norm/scale"),
)
_ENDS = (
    Row("model.embed_tokens.weight", "o d", {"embedding/rows": "o d"}),
    Row("model.norm.weight", "d", {"final_norm/scale": "d"}),
    Row("lm_head.weight", "o d", {"unembedding/rows": "o d"}),
)


def settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Our fields from a LlamaConfig's.

    Raises:
        ValueError: a setting that ours does not have.
    """
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "linear"):
        raise ValueError(f"rope_type is {kind!r}; allowed: default, linear")
    if config.get("mlp_bias"):
        raise ValueError("mlp_bias is true; allowed: false")
    theta = rope.get("rope_theta", config.get("rope_theta", 10000.0))
    return {
        "vocab_size": config["vocab_size"],
        "model_dim": config["hidden_size"],
        "num_layers": config["num_hidden_layers"],
        "num_heads": config["num_attention_heads"],
        "num_kv_heads": config.get("num_key_value_heads"),
        "head_dim": config.get("head_dim"),
        "feed_forward_dim": config["intermediate_size"],
        "norm_eps": config.get("rms_norm_eps", 1e-6),
        "rope_theta": theta,
        "rope_factor": rope.get("factor", 1.0),
        "attention_bias": config.get("attention_bias", False),
        "tie_embeddings": config.get("tie_word_embeddings", False),
        "final_norm_gain": True,
    }


def llama(
    name: str,
    *more: Row,
    attention: tuple[Row, ...] = ATTENTION,
    settings: Callable[[Mapping[str, Any]], dict[str, Any]] = settings,
    notes: str = "",
    recorded: str | None = None,
) -> Source:
    """The table of an implementation that follows Llama's, with `more` rows."""
    return Source(
        name=name,
        fields=_FIELDS,
        rows=(*_ENDS, *attention, *more, *_FEED_FORWARD, *_NORMS),
        copies=(
            Copy("lm_head.weight", "model.embed_tokens.weight", when=("tie_embeddings", True)),
        ),
        constants=(
            Constant(
                "model.norm.weight", "d", 1.0, "set final_norm_gain=True",
                when=("final_norm_gain", False),
            ),
        ),
        ignored=(
            "model.rotary_emb.inv_freq",
            "model.layers.{layer}.self_attn.rotary_emb.inv_freq",
        ),
        settings=settings,
        notes=" ".join((
            notes,
            "Rotary angles pair coordinate i with i + head_dim/2 on both sides. The weights do not "
            "carry rope_theta, rms_norm_eps, linear RoPE scaling (our rope_factor) and the number "
            "of heads: 4 heads of 16 and 8 of 8 have the same shapes. `read_config` takes these "
            "from the model's own config. Biases of feed-forwards have no counterpart.",
        )).strip(),
        recorded=recorded,
    )  # fmt: skip
