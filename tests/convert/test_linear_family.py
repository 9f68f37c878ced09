"""Names and shapes of the published checkpoints, and where each row of a fused tensor goes."""

import dataclasses

import jax
import numpy as np
import pytest

from multiscreen_jax import convert
from multiscreen_jax.convert.plan import tensors_of
from multiscreen_jax.convert.sources import table_named
from multiscreen_jax.models import AttentionLayers, config_for
from tests.convert.trees import LINEAR_FAMILY, assert_same, random_tree


def named_shapes(source, config):
    """Shapes by torch name."""
    return {tensor.name: tensor.shape for tensor in tensors_of(table_named(source), config)}


def test_the_published_log_linear_gated_delta_net():
    """The folder gdn/ of the authors' release: 423 tensors, 795,690,462 numbers."""
    config = config_for("log-linear-gdn-800m")
    shapes = named_shapes("log_linear_gdn/hattention", config)
    layer = {
        "attn_norm.weight": (1536,), "attn.q_proj.weight": (1152, 1536),
        "attn.k_proj.weight": (1152, 1536), "attn.v_proj.weight": (2304, 1536),
        "attn.a_proj.weight": (6, 1536), "attn.b_proj.weight": (6, 1536), "attn.A_log": (6,),
        "attn.dt_bias": (6,), "attn.q_conv1d.weight": (1152, 1, 4),
        "attn.k_conv1d.weight": (1152, 1, 4), "attn.v_conv1d.weight": (2304, 1, 4),
        "attn.g_proj.weight": (2304, 1536), "attn.o_norm.weight": (384,),
        "attn.o_proj.weight": (1536, 2304), "attn.l_proj.weight": (90, 1536), "attn.L": (6, 15),
        "mlp_norm.weight": (1536,), "mlp.gate_proj.weight": (4096, 1536),
        "mlp.up_proj.weight": (4096, 1536), "mlp.down_proj.weight": (1536, 4096),
    }  # fmt: skip
    want = {f"model.layers.{i}.{name}": s for i in range(21) for name, s in layer.items()}
    ends = {"model.embeddings.weight": (32000, 1536), "model.norm.weight": (1536,)}
    assert shapes == {**want, **ends, "lm_head.weight": (32000, 1536)}
    assert len(shapes) == 423
    assert sum(int(np.prod(s)) for s in shapes.values()) == 795_690_462


@pytest.mark.parametrize("source", ["log_linear_mamba2/hattention", "log_linear_mamba2/fla"])
def test_the_published_log_linear_mamba2(source):
    config = config_for("log-linear-mamba2-800m")
    shapes = named_shapes(source, config)
    layer = {
        "mixer_norm.weight": (1536,), "mixer.in_proj.weight": (7168, 1536),
        "mixer.conv1d.weight": (3328, 1, 4), "mixer.conv1d.bias": (3328,), "mixer.dt_bias": (48,),
        "mixer.A_log": (48,), "mixer.L": (48, 15), "mixer.norm.weight": (3072,), "mixer.D": (48,),
        "mixer.out_proj.weight": (1536, 3072), "mlp_norm.weight": (1536,),
        "mlp.gate_proj.weight": (4096, 1536), "mlp.up_proj.weight": (4096, 1536),
        "mlp.down_proj.weight": (1536, 4096),
    }  # fmt: skip
    want = {f"backbone.layers.{i}.{name}": s for i in range(21) for name, s in layer.items()}
    ends = {"backbone.embeddings.weight": (32000, 1536), "backbone.norm_f.weight": (1536,)}
    assert shapes == {**want, **ends, "lm_head.weight": (32000, 1536)}
    assert sum(int(np.prod(s)) for s in shapes.values()) == 825_465_312


def test_the_rows_of_the_fused_projection():
    """z | x | B | C | dt | dl, heads outside; the convolution's channels are x | B | C."""
    source = "log_linear_mamba2/hattention"
    config = LINEAR_FAMILY[source]
    tree = random_tree(config)
    mixer = tree["layers"]["mixer"]
    named = convert.to_torch(source, tree, config)
    h, g, k, v = config.num_heads, config.num_groups, config.key_dim, config.value_dim
    weight = named["backbone.layers.1.mixer.in_proj.weight"]
    cuts = np.cumsum([h * v, h * v, g * k, g * k, h])
    x = np.random.default_rng(3).standard_normal((5, config.model_dim)).astype(np.float32)
    roles = ("gate", "value", "key", "query", "step", "level")
    for name, rows in zip(roles, np.split(weight, cuts), strict=True):
        want = np.einsum("td,d...->t...", x, mixer[name][1])
        np.testing.assert_allclose((x @ rows.T).reshape(want.shape), want, atol=1e-5)
    kernel = named["backbone.layers.2.mixer.conv1d.weight"]
    bias = named["backbone.layers.2.mixer.conv1d.bias"]
    cuts = np.cumsum([h * v, g * k])
    for name, rows, numbers in zip(
        ("value", "key", "query"), np.split(kernel, cuts), np.split(bias, cuts), strict=True
    ):
        ours = mixer[f"{name}_conv"]
        np.testing.assert_array_equal(rows[:, 0].T, ours["kernel"][2].reshape(4, -1))
        np.testing.assert_array_equal(numbers, ours["bias"][2].ravel())


@pytest.mark.parametrize("source", sorted(LINEAR_FAMILY))
def test_gradients_convert_as_parameters_do(source):
    """Every table is linear; settings without a counterpart (a constant norm) are set aside."""
    config = dataclasses.replace(LINEAR_FAMILY[source], final_norm_gain=True)
    a, b = (random_tree(config, seed) for seed in (1, 2))
    mixed = jax.tree.map(lambda x, y: np.asarray(2 * x - 4 * y), a, b)
    to = [convert.to_torch(source, tree, config) for tree in (a, b)]
    combined = {name: np.asarray(2 * x - 4 * to[1][name]) for name, x in to[0].items()}
    assert_same(combined, convert.to_torch(source, mixed, config))
    assert_same(convert.from_torch(source, combined, config), mixed)


def test_mamba2_with_feed_forward_layers():
    config = dataclasses.replace(LINEAR_FAMILY["mamba2/fla"], feed_forward_dim=17)
    tree = random_tree(config)
    named = convert.to_torch("mamba2/fla", tree, config)
    assert named["backbone.layers.0.mlp.down_proj.weight"].shape == (12, 17)
    assert "backbone.layers.0.mixer_norm.weight" in named
    assert_same(convert.from_torch("mamba2/fla", named, config), tree)


def test_a_parents_table_does_not_take_its_child():
    config = LINEAR_FAMILY["log_linear_gdn/hattention"]
    with pytest.raises(TypeError, match="needs a GatedDeltaNetConfig, got LogLinearGatedDelta"):
        convert.to_torch("gated_deltanet/fla", random_tree(config), config)


def test_files_know_the_family(tmp_path):
    for source in ("log_linear_gdn/hattention", "mamba2/fla"):
        config = LINEAR_FAMILY[source]
        tree = random_tree(config)
        convert.save_safetensors(tmp_path / "weights.safetensors", tree, config)
        again, same = convert.load_safetensors(tmp_path / "weights.safetensors")
        assert same == config
        assert_same(tree, again)


def test_a_pattern_has_no_counterpart():
    config = dataclasses.replace(
        LINEAR_FAMILY["gated_deltanet/fla"],
        pattern=("mixer", "mixer", "attention"),
        attention=AttentionLayers(num_heads=2),
    )
    with pytest.raises(
        ValueError, match=r"no counterpart of layers/layer_2/attention.* and 2 more"
    ):
        convert.to_torch("gated_deltanet/fla", random_tree(config), config)
