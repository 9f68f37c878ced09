import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multiscreen_jax import convert
from multiscreen_jax.models.registry import build
from tests.convert.trees import MULTISCREEN, TRANSFORMER, assert_same, config_for, random_tree

SOURCES = convert.sources()


def test_sources():
    assert set(SOURCES) >= {
        "multiscreen/paper",
        "multiscreen/dieod",
        "multiscreen/hf",
        "multiscreen/lucidrains",
        "transformer/hf-llama",
        "mamba2/fla",
        "gated_deltanet/fla",
        "log_linear_mamba2/hattention",
        "log_linear_mamba2/fla",
        "log_linear_gdn/hattention",
    }
    assert "max_seq_len" in convert.describe("multiscreen/dieod")


@pytest.mark.parametrize("source", SOURCES)
def test_there_and_back(source):
    config = config_for(source)
    params = random_tree(config)
    named = convert.to_torch(source, params, config)
    again = convert.from_torch(source, named, config)
    assert_same(params, again)
    assert_same(named, convert.to_torch(source, again, config))
    for name, array in named.items():
        assert type(array) is np.ndarray, name
        assert array.flags.writeable, name
        assert array.flags.c_contiguous, name
        assert not np.shares_memory(array, params["embedding"]["rows"]), name


@pytest.mark.parametrize("source", SOURCES)
def test_our_tree_is_the_models_tree(source):
    config = config_for(source)
    model = build(config)
    tree = jax.eval_shape(
        lambda: model.init(jax.random.key(0), jnp.zeros((1, 3), jnp.int32))["params"]
    )
    ours = convert.from_torch(source, convert.to_torch(source, random_tree(config), config), config)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), ours) == jax.tree.map(
        lambda x: (x.shape, x.dtype), tree
    )


@pytest.mark.parametrize("source", [s for s in SOURCES if s.startswith("multiscreen/")])
def test_multiscreen_sources_are_linear_both_ways(source):
    a, b = (random_tree(MULTISCREEN, seed) for seed in (1, 2))
    mixed = jax.tree.map(lambda x, y: np.asarray(2 * x - 4 * y), a, b)
    to = {k: convert.to_torch(source, v, MULTISCREEN) for k, v in {"a": a, "b": b}.items()}
    weights = {n: x for n, x in to["a"].items() if "max_seq_len" not in n}
    combined = {n: np.asarray(2 * x - 4 * to["b"][n]) for n, x in weights.items()}
    direct = convert.to_torch(source, mixed, MULTISCREEN)
    assert_same(combined, {n: direct[n] for n in weights})
    assert_same(convert.from_torch(source, combined, MULTISCREEN), mixed)


def heads_of(x, tree, name):
    """Projection of x [T, D] by one of our arrays, layer 1: [T, H, dim]."""
    return np.einsum("td,dhk->thk", x, tree["layers"]["tiles"][name][1])


def test_lucidrains_layout():
    """Fused projections are cut per head, as the package cuts them after its linear layer."""
    c = MULTISCREEN
    tree = random_tree(c)
    x = np.random.default_rng(3).standard_normal((5, c.model_dim)).astype(np.float32)
    named = convert.to_torch("multiscreen/lucidrains", tree, c)
    for name, first, second in (
        ("to_queries_gates", "query", "gate"),
        ("to_keys_values", "key", "value"),
    ):
        y = (x @ named[f"layers.1.{name}.weight"].T).reshape(5, c.num_heads, -1)
        np.testing.assert_allclose(y[..., : c.key_dim], heads_of(x, tree, first), atol=1e-5)
        np.testing.assert_allclose(y[..., c.key_dim :], heads_of(x, tree, second), atol=1e-5)
    np.testing.assert_array_equal(
        named["layers.2.inverse_acceptance_width.log_scales"],
        -tree["layers"]["tiles"]["logit_width"][2],
    )
    assert named["scale_embed.log_scales"].shape == (1,)


def test_lucidrains_length_buffer():
    source, tree = "multiscreen/lucidrains", random_tree(MULTISCREEN)
    named = convert.to_torch(source, tree, MULTISCREEN)
    buffer = "layers.0.soft_mask.max_seq_len"
    assert named[buffer].dtype == np.int64
    assert named[buffer].shape == ()
    assert convert.trained_length(source, named) is None
    config = dataclasses.replace(MULTISCREEN, trained_length=40, infinite_windows=True)
    named = convert.to_torch(source, tree, config)
    assert convert.trained_length(source, named) == 40
    assert convert.trained_length("multiscreen/dieod", named) is None
    assert_same(convert.from_torch(source, named, config), tree)
    # gradients come without buffers
    weights = {n: x for n, x in named.items() if "max_seq_len" not in n}
    assert_same(convert.from_torch(source, weights, config), tree)
    other = dataclasses.replace(config, trained_length=64)
    with pytest.raises(ValueError, match=r"lengths up to 40 .*trained_length=64"):
        convert.from_torch(source, named, other)


def test_llama_layout():
    c, tree = TRANSFORMER, random_tree(TRANSFORMER)
    named = convert.to_torch("transformer/hf-llama", tree, c)
    x = np.random.default_rng(3).standard_normal((5, c.model_dim)).astype(np.float32)
    layer = tree["layers"]["attention"]
    for name, ours, heads in (
        ("q", "query", c.num_heads),
        ("k", "key", c.num_kv_heads),
        ("v", "value", c.num_kv_heads),
    ):
        y = x @ named[f"model.layers.1.self_attn.{name}_proj.weight"].T
        want = np.einsum("td,dhk->thk", x, layer[ours][1])
        np.testing.assert_allclose(y.reshape(5, heads, c.head_dim), want, atol=1e-5)
    y = np.random.default_rng(4).standard_normal((5, c.num_heads, c.head_dim)).astype(np.float32)
    want = np.einsum("thk,hkd->td", y, layer["output"][2])
    got = y.reshape(5, -1) @ named["model.layers.2.self_attn.o_proj.weight"].T
    np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("gain", [True, False])
def test_llama_variants(tied, gain):
    source = "transformer/hf-llama"
    config = dataclasses.replace(TRANSFORMER, tie_embeddings=tied, final_norm_gain=gain)
    tree = random_tree(config)
    named = convert.to_torch(source, tree, config)
    assert_same(convert.from_torch(source, named, config), tree)
    rows = named["model.embed_tokens.weight"]
    assert np.array_equal(named["lm_head.weight"], rows) is tied
    assert bool(np.all(named["model.norm.weight"] == 1)) is not gain
    # files leave a tied head out, older ones carry rotary buffers
    if tied:
        del named["lm_head.weight"]
    named["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(3, np.float32)
    assert_same(convert.from_torch(source, named, config), tree)


def test_kv_heads_and_head_dim_may_be_left_out():
    config = dataclasses.replace(TRANSFORMER, num_heads=3, num_kv_heads=None, head_dim=None)
    full = dataclasses.replace(config, num_kv_heads=3, head_dim=4)
    tree = random_tree(full)
    named = convert.to_torch("transformer/hf-llama", tree, config)
    assert_same(convert.from_torch("transformer/hf-llama", named, config), tree)


def test_dtypes():
    source, tree = "multiscreen/paper", random_tree(MULTISCREEN, dtype="float16")
    named = convert.to_torch(source, tree, MULTISCREEN)
    assert named["W_E"].dtype == np.float16
    params = convert.from_torch(source, named, MULTISCREEN)
    assert {x.dtype.name for x in jax.tree.leaves(params)} == {"float32"}
    half = dataclasses.replace(MULTISCREEN, param_dtype="bfloat16")
    params = convert.from_torch(source, named, half)
    assert {x.dtype.name for x in jax.tree.leaves(params)} == {"bfloat16"}
    widened = convert.to_torch(source, params, half)
    assert {x.dtype.name for x in widened.values()} == {"float32"}
    assert_same(convert.from_torch(source, widened, half), params)


def test_float64_needs_x64():
    config = dataclasses.replace(MULTISCREEN, param_dtype="float64")
    tree = random_tree(MULTISCREEN, dtype="float64")
    named = convert.to_torch("multiscreen/paper", tree, config)
    assert named["W_E"].dtype == np.float64
    with pytest.raises(ValueError, match="jax_enable_x64"):
        convert.from_torch("multiscreen/paper", named, config)
    with jax.enable_x64(True):
        assert_same(convert.from_torch("multiscreen/paper", named, config), tree)


@pytest.mark.parametrize("source", SOURCES)
def test_no_two_tensors_hold_the_same_array(source):
    """Every element of our tree occurs once among a source's tensors (up to sign)."""
    config, count = config_for(source), 0
    tree = random_tree(config)
    for x in jax.tree.leaves(tree):
        x[...] = np.arange(count + 1, count + 1 + x.size).reshape(x.shape)
        count += x.size
    named = convert.to_torch(source, tree, config)
    absent = "max_seq_len" if getattr(config, "final_norm_gain", True) else "max_seq_len|l.norm.w"
    if getattr(config, "tie_embeddings", False):
        absent += "|lm_head"
    values = [x.ravel() for n, x in named.items() if not re.search(absent, n)]
    np.testing.assert_array_equal(np.sort(np.abs(np.concatenate(values))), np.arange(1, count + 1))
