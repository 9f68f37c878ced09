"""RetNet, DeltaNet, Mamba-2, Gated DeltaNet, their log-linear forms, and hybrids."""

import dataclasses
import functools
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import multiscreen_jax as mj
from multiscreen_jax.models import (
    AttentionLayers,
    GatedDeltaNetConfig,
    LogLinearGatedDeltaNetConfig,
    Mamba2Config,
    build,
    preset_names,
)
from multiscreen_jax.train import config_json
from tests.marks import slow_unless
from tests.models.linear_family import CONFIGS, NAMES, logits, params_of

PRESETS = [n for n in preset_names() if not n.startswith(("multiscreen", "transformer"))]
TOKENS = jax.random.randint(jax.random.key(1), (2, 80), 0, 61)

# One of every kind of state: none decays by the input, all do, all levels, and tokens beside.
FEW = slow_unless(("retnet", "mamba2", "log-linear-gdn", "gdn+attention"), NAMES)
# What `suites/test_architectures.py` has of every architecture alone.
ALONE = [name for name in NAMES if "+" not in name]
SOME = ("retnet", "deltanet", "gdn", "log-linear-mamba2")


def test_the_papers_counts():
    paper = {
        "log-linear-gdn-800m": 795_690_462,
        "log-linear-mamba2-800m": 825_465_312,
        "gdn-800m": 792_785_532,
        "mamba2-mlp-800m": 802_225_872,
    }
    assert {n: mj.models.config_for(n).parameter_count() for n in paper} == paper


@pytest.mark.parametrize("name", NAMES)
def test_configs_survive_json(name):
    config = CONFIGS[name]
    plain = json.loads(json.dumps(config_json.model_to_dict(config)))
    assert config_json.model_from_dict(plain) == config
    assert hash(config) == hash(config_json.model_from_dict(plain))


@pytest.mark.slow
def test_create_takes_fields():
    model, config = mj.models.create("log-linear-gdn-tiny", vocab_size=300, num_layers=2)
    assert (config.vocab_size, config.num_layers) == (300, 2)
    assert type(model).__name__ == "LogLinearGatedDeltaNet"
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]
    assert mj.generate(model, params, [5, 299, 0], max_new_tokens=4).shape == (4,)


@pytest.mark.slow
def test_initial_values():
    wide = {"num_heads": 64, "model_dim": 64, "initializer_range": None}
    config = dataclasses.replace(CONFIGS["log-linear-mamba2"], **wide)
    params = jax.jit(build(config).init)(jax.random.key(0), TOKENS[:, :4])["params"]
    mixer = params["layers"]["mixer"]
    np.testing.assert_allclose(mixer["log_rate"][1], np.log(np.arange(1, 65)), rtol=1e-6)
    step = np.log1p(np.exp(mixer["step_bias"]))
    assert 0.001 <= step.min() < 0.002
    assert 0.05 < step.max() <= 0.1001
    np.testing.assert_allclose(np.std(mixer["value"]), (3 * 64) ** -0.5, rtol=0.03)
    assert np.all(mixer["level_gain"] == 1)
    assert np.all(mixer["skip"] == 1)
    assert np.all(mixer["key_conv"]["bias"] == 0)
    bound = (64 * 5) ** -0.5 / 4**0.5  # fan in of 64 heads of 5; two layers of two branches
    assert 0.98 * bound < np.abs(mixer["output"]).max() <= bound
    rates = jax.jit(build(CONFIGS["gdn"]).init)(jax.random.key(0), TOKENS[:, :4])["params"]
    assert np.exp(rates["layers"]["mixer"]["log_rate"]).max() < 16


@pytest.mark.parametrize(
    "name",
    slow_unless(
        ("retnet", "log-linear-gdn"),
        ("retnet", "deltanet", "mamba2-mlp", "gdn", "log-linear-mamba2", "log-linear-gdn"),
    ),
)
def test_flops_match_the_compiler(name):
    """At one chunk: XLA counts the body of a scan once, however often it runs."""
    length = 64
    wide = {"model_dim": 256, "num_layers": 2, "key_dim": 64, "value_dim": 128, "vocab_size": 512}
    model, config = mj.models.create(
        f"{name}-tiny", **wide, feed_forward_dim=512, unroll_layers=True
    )
    tokens = jax.ShapeDtypeStruct((1, length), jnp.int32)
    params = jax.eval_shape(model.init, jax.random.key(0), tokens)["params"]
    compiled = jax.jit(lambda p, t: model.apply({"params": p}, t).logits).lower(params, tokens)
    counted = compiled.compile().cost_analysis()["flops"]
    assert abs(counted / config.forward_flops(length) - 1) < 0.1


@pytest.mark.parametrize("name", slow_unless((), NAMES, exhaustive=ALONE))
def test_packed_documents_are_alone_and_isolated(name):
    segment_ids = jnp.asarray([[1] * 5 + [2] * 39 + [3] * 33 + [0] * 3])
    row = np.asarray(TOKENS[:1])
    packed = np.asarray(logits(name, row, segment_ids))
    for document in (1, 2, 3):
        (places,) = np.nonzero(np.asarray(segment_ids[0]) == document)
        rest = row[:, places[0] :]  # what follows cannot be seen; one shape less to compile
        alone = np.asarray(logits(name, np.pad(rest, ((0, 0), (0, 80 - rest.shape[1])))))
        np.testing.assert_allclose(packed[0, places], alone[0, : len(places)], rtol=1e-5, atol=2e-5)
    second = np.asarray(segment_ids) == 2
    changed = np.asarray(logits(name, np.where(second, (row + 1) % 61, row), segment_ids))
    np.testing.assert_array_equal(packed[~second], changed[~second])


@pytest.mark.parametrize("name", slow_unless((), NAMES, exhaustive=ALONE))
def test_bfloat16_does_not_see_the_future(name):
    tokens = np.asarray(TOKENS[:1, :75])
    before = np.asarray(logits(name, tokens, dtype="bfloat16"))
    assert before.dtype == jnp.float32
    for place in (3, 66):
        other = tokens.copy()
        other[0, place] = (other[0, place] + 1) % 61
        changed = np.asarray(logits(name, other, dtype="bfloat16"))
        np.testing.assert_array_equal(before[:, :place], changed[:, :place])
        assert (before[:, place:] != changed[:, place:]).any()


@pytest.mark.parametrize("name", slow_unless(("gdn+attention",), NAMES, exhaustive=SOME))
def test_bfloat16_is_near_float32(name):
    """At most places: norms over five numbers enlarge the error of outputs near zero."""
    want = np.asarray(logits(name, TOKENS[:1, :75]))
    got = np.asarray(logits(name, TOKENS[:1, :75], dtype="bfloat16"))
    errors = np.sqrt(np.mean((got - want) ** 2, axis=(0, 2))) / np.std(want)
    assert 0 < np.median(errors) < 0.05


@pytest.mark.parametrize("name", slow_unless(("gdn+attention",), NAMES, exhaustive=SOME))
def test_float64_throughout(name):
    want = logits(name, TOKENS[:1])
    with jax.enable_x64(True):
        wide = {"dtype": "float64", "param_dtype": "float64"}
        params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), params_of(name))
        jaxpr = jax.make_jaxpr(lambda p: logits(name, TOKENS[:1], params=p, **wide))(params)
        assert "f32" not in str(jaxpr)
        got = logits(name, TOKENS[:1], params=params, **wide)
    np.testing.assert_allclose(got, want, rtol=2e-4, atol=2e-4)


@functools.cache
def _gradients(name, **fields):
    def loss(params):
        return jnp.mean(logits(name, TOKENS[:1, :70], params=params, **fields) ** 2)

    return jax.jit(jax.grad(loss))(params_of(name))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "fields"),
    [
        pytest.param("gdn", {"remat": "mixer"}, marks=pytest.mark.exhaustive),
        pytest.param("gdn+attention", {"remat": "full"}, marks=pytest.mark.exhaustive),
        pytest.param("gdn+attention", {"unroll_layers": True}, marks=pytest.mark.slow),
        ("mamba2", {"remat": "dots", "unroll_layers": True}),
    ],
)
def test_remat_and_loop_change_nothing(name, fields):
    got, want = _gradients(name, **fields), _gradients(name)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), got, want)


@pytest.mark.slow
def test_equal_level_weights_are_the_parent():
    """With lambda the same for all levels only the scale of the queries differs, and the norm of
    the output takes it away."""
    params = params_of("log-linear-gdn")
    mixer = dict(params["layers"]["mixer"])
    mixer["level"] = jnp.zeros_like(mixer["level"])
    zero = {**params, "layers": {**params["layers"], "mixer": mixer}}
    parent = {k: v for k, v in mixer.items() if k not in ("level", "level_gain")}
    parent = {**params, "layers": {**params["layers"], "mixer": parent}}
    got = logits("log-linear-gdn", TOKENS, params=zero, norm_eps=1e-12)
    want = logits("gdn", TOKENS, params=parent, norm_eps=1e-12)
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_beyond_the_levels():
    """More tokens than levels hold: an error, or what the config says."""
    fields = {"num_levels": 6}  # 32 tokens
    params = params_of("log-linear-gdn")
    mixer = dict(params["layers"]["mixer"])
    mixer |= {"level": mixer["level"][..., :6], "level_gain": mixer["level_gain"][..., :6]}
    params = {**params, "layers": {**params["layers"], "mixer": mixer}}
    with pytest.raises(ValueError, match="6 levels hold 32 tokens, got 80"):
        logits("log-linear-gdn", TOKENS, params=params, **fields)
    clamped, extended = (
        logits("log-linear-gdn", TOKENS, params=params, beyond_levels=policy, **fields)
        for policy in ("clamp", "extend")
    )
    np.testing.assert_allclose(clamped, extended, rtol=1e-4, atol=1e-4)
    short = build(dataclasses.replace(CONFIGS["log-linear-gdn"], **fields))
    assert len(mj.generate(short, params, TOKENS[0, :30], max_new_tokens=3)) == 3
    with pytest.raises(ValueError, match="6 levels hold 32 tokens; more need more"):
        mj.generate(short, params, TOKENS[0, :30], max_new_tokens=4)
    config = dataclasses.replace(CONFIGS["log-linear-gdn"], beyond_levels="extend", **fields)
    cache = build(config).init_cache(params, 1, 80)
    assert cache.parts["layers"][0]["state"].levels.shape[3] == 8


@pytest.mark.parametrize(
    ("config_class", "fields", "message"),
    [
        (GatedDeltaNetConfig, {"pattern": ()}, "pattern must be a tuple of kinds of layer"),
        (GatedDeltaNetConfig, {"pattern": ("mixer", "mlp")}, "pattern must be one of mixer, att"),
        (GatedDeltaNetConfig, {"pattern": ("mixer",) * 3}, "num_layers must be at least 3, the"),
        (GatedDeltaNetConfig, {"pattern": ("attention",)}, "attention must be given if the patt"),
        (
            GatedDeltaNetConfig,
            {"attention": AttentionLayers(num_heads=2)},
            "attention must be given if the pattern has such layers and only then",
        ),
        (
            GatedDeltaNetConfig,
            {"pattern": ("attention",), "attention": AttentionLayers(num_heads=3)},
            "model_dim must be a multiple of num_heads",
        ),
        (GatedDeltaNetConfig, {"conv_width": 1}, "conv_width must be an integer >= 2, got 1"),
        (GatedDeltaNetConfig, {"implementation": "fast"}, "implementation"),
        (Mamba2Config, {"num_groups": 3}, "num_heads must be a multiple of num_groups"),
        (LogLinearGatedDeltaNetConfig, {"beyond_levels": "drop"}, "beyond_levels must be one of"),
        (LogLinearGatedDeltaNetConfig, {"num_levels": 0}, "num_levels must be an integer >= 1"),
    ],
)
def test_config_errors(config_class, fields, message):
    good = {"vocab_size": 16, "model_dim": 8, "num_layers": 2, "num_heads": 2}
    dims = {"key_dim": 4, "value_dim": 4}
    with pytest.raises(ValueError, match=message):
        config_class(**{**good, **dims, **fields})


class LastToken(mj.mixers.Mixer):
    """y_t = x_{t-1} W: the smallest mixer that one could write."""

    @nn.compact
    def __call__(self, x, layer, context):
        shape, axes = (x.shape[-1],) * 2, ("embed", None)
        weight = self.weight("weight", nn.initializers.normal(1.0), shape, axes)
        return jnp.pad(x, [(0, 0), (1, 0), (0, 0)])[:, :-1] @ weight, None


@dataclasses.dataclass(frozen=True)
class LastTokenSpec(mj.mixers.Spec):
    tree_name = "mixer"

    def build(self, common, **how):
        return LastToken(self, common, **how)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LastTokenConfig(mj.models.LinearConfig):
    def mixer(self):
        return LastTokenSpec()


def test_a_config_of_ones_own_builds_a_decoder():
    config = LastTokenConfig(
        vocab_size=16, model_dim=8, num_layers=2, num_heads=1, key_dim=1, value_dim=1
    )
    model = build(config)
    params = model.init(jax.random.key(0), TOKENS[:, :9] % 16)["params"]
    assert sum(x.size for x in jax.tree.leaves(params)) == config.parameter_count()
    first = model.apply({"params": params}, TOKENS[:, :9] % 16).logits
    other = model.apply({"params": params}, (TOKENS[:, :9] % 16).at[:, 8].add(1) % 16).logits
    assert np.array_equal(first[:, :8], other[:, :8])
    assert not np.array_equal(first[:, 8], other[:, 8])
    with pytest.raises(TypeError, match="or another DecoderConfig, got int"):
        build(3)
