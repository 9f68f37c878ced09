"""The table of transformers' LlamaForCausalLM."""

from multiscreen_jax.convert.table import Constant, Copy, Row, Source
from multiscreen_jax.models.transformer import TransformerConfig

_ATTENTION = "model.layers.{layer}.self_attn"
_MLP = "model.layers.{layer}.mlp"

HF_LLAMA = Source(
    name="transformer/hf-llama",
    config_class=TransformerConfig,
    fields={
        "o": "vocab_size",
        "d": "model_dim",
        "h": "num_heads",
        "g": "num_kv_heads",
        "k": "head_dim",
        "f": "feed_forward_dim",
        "n": "num_layers",
    },
    rows=(
        Row("model.embed_tokens.weight", "o d", {"embedding/rows": "o d"}),
        Row(
            "model.layers.{layer}.input_layernorm.weight", "d", {"layers/attention_norm/scale": "d"}
        ),
        Row(f"{_ATTENTION}.q_proj.weight", "(h k) d", {"layers/attention/query": "d h k"}),
        Row(f"{_ATTENTION}.k_proj.weight", "(g k) d", {"layers/attention/key": "d g k"}),
        Row(f"{_ATTENTION}.v_proj.weight", "(g k) d", {"layers/attention/value": "d g k"}),
        Row(f"{_ATTENTION}.o_proj.weight", "d (h k)", {"layers/attention/output": "h k d"}),
        Row(
            "model.layers.{layer}.post_attention_layernorm.weight",
            "d",
            {"layers/feed_forward_norm/scale": "d"},
        ),
        Row(f"{_MLP}.gate_proj.weight", "f d", {"layers/feed_forward/gate": "d f"}),
        Row(f"{_MLP}.up_proj.weight", "f d", {"layers/feed_forward/up": "d f"}),
        Row(f"{_MLP}.down_proj.weight", "d f", {"layers/feed_forward/down": "f d"}),
        Row("model.norm.weight", "d", {"final_norm/scale": "d"}, when=("final_norm_gain", True)),
        Row("lm_head.weight", "o d", {"unembedding/rows": "o d"}, when=("tie_embeddings", False)),
    ),
    copies=(Copy("lm_head.weight", of="model.embed_tokens.weight", when=("tie_embeddings", True)),),
    constants=(
        Constant(
            "model.norm.weight",
            "d",
            1.0,
            advice="set final_norm_gain=True",
            when=("final_norm_gain", False),
        ),
    ),
    ignored=(
        "model.rotary_emb.inv_freq",
        "model.layers.{layer}.self_attn.rotary_emb.inv_freq",
    ),
    notes=(
        "Rotary angles pair coordinate i with i + head_dim/2 on both sides. rope_theta, "
        "rms_norm_eps and linear RoPE scaling (our rope_factor) are in the config, not in the "
        "weights, and so is the number of heads: 4 heads of 16 and 8 of 8 have the same shapes. "
        "Biases have no counterpart and are reported."
    ),
)

TABLES = (HF_LLAMA,)
