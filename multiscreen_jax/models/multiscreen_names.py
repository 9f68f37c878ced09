"""Tables of the Multiscreen implementations.

Ours keeps the paper's third version, width = sigmoid(s_r). The PyTorch packages keep the first
version's 1 / (exp(s) + 1), which is sigmoid(-s), so their acceptance parameter changes sign.
"""

from dataclasses import replace

from multiscreen_jax.models.conversion import LengthBuffer, Row, Source

FIELDS = {
    "o": "vocab_size",
    "d": "model_dim",
    "h": "num_heads",
    "k": "key_dim",
    "v": "value_dim",
    "n": "num_layers",
}

PAPER = Source(
    name="multiscreen/paper",
    fields=FIELDS,
    rows=(
        Row("W_E", "o d", {"embedding/rows": "o d"}),
        Row("s_E", "", {"embedding/log_input_scale": ""}),
        Row("s_F", "", {"embedding/log_output_scale": ""}),
        Row("layers.{layer}.W_Q", "h d k", {"tiles/query": "d h k"}),
        Row("layers.{layer}.W_K", "h d k", {"tiles/key": "d h k"}),
        Row("layers.{layer}.W_V", "h d v", {"tiles/value": "d h v"}),
        Row("layers.{layer}.W_G", "h d v", {"tiles/gate": "d h v"}),
        Row("layers.{layer}.W_O", "h v d", {"tiles/output": "h v d"}),
        Row("layers.{layer}.s_w", "h", {"tiles/log_window": "h"}),
        Row("layers.{layer}.s_r", "h", {"tiles/logit_width": "h"}),
        Row("layers.{layer}.s_O", "h", {"tiles/log_output_scale": "h"}),
    ),
    notes="The paper's symbols, one array per head and projection; s_r with width = sigmoid(s_r).",
)

DIEOD = Source(
    name="multiscreen/dieod",
    fields=FIELDS,
    rows=(
        Row("embed.weight", "o d", {"embedding/rows": "o d"}),
        Row("s_E", "", {"embedding/log_input_scale": ""}),
        Row("s_F", "", {"embedding/log_output_scale": ""}),
        Row("layers.{layer}.block.q_proj.weight", "(h k) d", {"tiles/query": "d h k"}),
        Row("layers.{layer}.block.k_proj.weight", "(h k) d", {"tiles/key": "d h k"}),
        Row("layers.{layer}.block.v_proj.weight", "(h v) d", {"tiles/value": "d h v"}),
        Row("layers.{layer}.block.g_proj.weight", "(h v) d", {"tiles/gate": "d h v"}),
        Row("layers.{layer}.block.o_proj.weight", "d (h v)", {"tiles/output": "h v d"}),
        Row("layers.{layer}.block.sw", "h", {"tiles/log_window": "h"}),
        Row("layers.{layer}.block.sr", "h", {"tiles/logit_width": "h"}, sign=-1),
        Row("layers.{layer}.block.sO", "h", {"tiles/log_output_scale": "h"}),
    ),
    notes=(
        "dieOD/multiscreen-pytorch, commit 8abea13. Positions wrap after its max_seq_len (256 "
        'unless set): position_rule="wrap", wrap_length=max_seq_len gives its logits.'
    ),
)

HF = replace(
    DIEOD,
    name="multiscreen/hf",
    rows=tuple(replace(row, name=f"multiscreen.{row.name}") for row in DIEOD.rows),
    notes=(
        "MultiscreenForCausalLM of kuroganegames/Multiscreen-HF, commit 2764ef0. A config without "
        'mipe_position_mode wraps positions: position_rule="wrap", '
        "wrap_length=max_position_embeddings. The bare MultiscreenModel has multiscreen/dieod's "
        "names."
    ),
)

LUCIDRAINS = Source(
    name="multiscreen/lucidrains",
    fields=FIELDS,
    rows=(
        Row("token_embeds", "o d", {"embedding/rows": "o d"}),
        Row("scale_embed.log_scales", "1", {"embedding/log_input_scale": ""}),
        Row("scale_unembed.log_scales", "1", {"embedding/log_output_scale": ""}),
        Row(
            "layers.{layer}.to_queries_gates.weight",
            "(h k+v) d",
            {"tiles/query": "d h k", "tiles/gate": "d h v"},
        ),
        Row(
            "layers.{layer}.to_keys_values.weight",
            "(h k+v) d",
            {"tiles/key": "d h k", "tiles/value": "d h v"},
        ),
        Row("layers.{layer}.to_out.weight", "d (h v)", {"tiles/output": "h v d"}),
        Row(
            "layers.{layer}.soft_mask.learned_window.log_scales",
            "h",
            {"tiles/log_window": "h"},
        ),
        Row(
            "layers.{layer}.inverse_acceptance_width.log_scales",
            "h",
            {"tiles/logit_width": "h"},
            sign=-1,
        ),
        Row(
            "layers.{layer}.head_wise_scale.log_scales",
            "h",
            {"tiles/log_output_scale": "h"},
        ),
    ),
    lengths=(LengthBuffer("layers.{layer}.soft_mask.max_seq_len"),),
    notes=(
        "The package multiscreen 0.2.0 (earlier releases compute something else), with its "
        "competitive, final_norm and orthog_residual off. It tracks the longest length seen in "
        "training and in eval mode makes longer windows infinite: trained_length(source, "
        "state_dict) reads that length; infinite_windows=True, trained_length=that length gives "
        "its eval logits."
    ),
)

SOURCES = (PAPER, DIEOD, HF, LUCIDRAINS)
