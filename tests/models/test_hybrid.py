"""Layers as values: any mixer beside any other, odd first layers, patterns with a tail."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import multiscreen_jax as mj
from multiscreen_jax.layers.feed_forward import SwiGLUSpec
from multiscreen_jax.layers.parameters import facts_of
from multiscreen_jax.layers.residuals import NoNorm
from multiscreen_jax.mixers import (
    AttentionSpec,
    GatedDeltaNetSpec,
    Mamba2Spec,
    RetentionSpec,
    ScreeningSpec,
)
from multiscreen_jax.models import HybridConfig, Layer
from multiscreen_jax.models.resformer import FirstSpec
from multiscreen_jax.train import config_json
from multiscreen_jax.train.state import abstract_params
from tests.suites import cache_suite

TOKENS = jax.random.randint(jax.random.key(1), (2, 23), 0, 61)
WIDE = SwiGLUSpec(feed_forward_dim=24)
FIRST = (Layer(RetentionSpec(num_heads=2, key_dim=4, value_dim=6), SwiGLUSpec(feed_forward_dim=8)),)
PATTERN = (
    Layer(GatedDeltaNetSpec(num_heads=2, key_dim=6, value_dim=5), WIDE),
    Layer(Mamba2Spec(num_heads=4, key_dim=6, value_dim=5)),
    Layer(AttentionSpec(num_heads=4, num_kv_heads=2), WIDE),
    Layer(
        ScreeningSpec(num_heads=2, key_dim=4, value_dim=6, window_threshold=9.0),
        residual=NoNorm(),
    ),
)
CONFIG = HybridConfig(
    vocab_size=61, model_dim=16, num_layers=11, first=FIRST, pattern=PATTERN, norm_eps=1e-6
)


@pytest.fixture(scope="module")
def trained():
    return perturbed(CONFIG)


def perturbed(config):
    """The model, and parameters none of which is what it starts with."""
    model = mj.models.build(config)
    params = jax.jit(model.init)(jax.random.key(0), TOKENS[:, :4])["params"]
    rng = np.random.default_rng(2)
    return model, jax.tree.map(
        lambda x: jnp.asarray(x + 0.1 * rng.standard_normal(x.shape), x.dtype), params
    )


def test_stages():
    model = mj.models.build(CONFIG)
    stages = CONFIG.stages()
    found = [(stage.name, len(stage.pattern), stage.repeats) for stage in stages]
    assert found == [("first", 1, 1), ("layers", 4, 2), ("last", 2, 1)]
    params = abstract_params(model)
    assert params["first"]["mixer"]["query"].shape[0] == 1
    assert params["layers"]["layer_2"]["attention"]["query"].shape == (2, 16, 4, 4)
    assert params["last"]["layer_1"].keys() == {"mixer", "mixer_norm"}
    assert params["layers"]["layer_3"].keys() == {"tiles"}  # no norm
    facts = facts_of(model)
    assert facts["layers"]["layer_3"]["tiles"]["log_window"].axes == ("layers", "heads")
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert CONFIG.parameter_count() == count


@pytest.mark.slow
def test_every_layer_has_its_depth():
    seen = []

    @dataclasses.dataclass(frozen=True)
    class Note(NoNorm):
        def __call__(self, x, sublayer):
            seen.append(sublayer.depth)
            return super().__call__(x, sublayer)

    layers = (dataclasses.replace(PATTERN[2], residual=Note()),) * 3
    config = dataclasses.replace(CONFIG, first=layers[:1], pattern=layers, num_layers=9)
    model = mj.models.build(dataclasses.replace(config, unroll_layers=True))
    params = jax.jit(model.init)(jax.random.key(0), TOKENS[:, :4])["params"]
    seen.clear()
    model.apply({"params": params}, TOKENS[:, :4])
    depths = [int(depth) for depth in seen if not isinstance(depth, jax.core.Tracer)]
    assert sorted(set(depths)) == list(range(9))
    assert depths == sorted(depths)


@pytest.mark.exhaustive
def test_no_token_sees_the_future_and_documents_are_alone(trained):
    model, params = trained
    call = jax.jit(lambda *x: model.apply({"params": params}, *x).logits)
    whole = call(TOKENS)
    later = call(TOKENS.at[:, 15:].set((TOKENS[:, 15:] + 1) % 61))
    np.testing.assert_array_equal(whole[:, :15], later[:, :15])
    assert not np.array_equal(whole[:, 15], later[:, 15])
    ids = jnp.asarray([[1] * 9 + [2] * 11 + [0] * 3] * 2)
    cache_suite.assert_close(call(TOKENS, ids)[:, 9:20], call(TOKENS[:, 9:20]), 3e-5, "packed")


@pytest.mark.exhaustive  # one pattern more than `suites/test_architectures.py` has
def test_caches(trained):
    cache_suite.check_every_split_in_one_batch(*trained, TOKENS[:1], 1e-4)
    cache_suite.check_ragged_batch(*trained, TOKENS, (11, 4))
    cache_suite.check_overflow_is_loud(*trained, TOKENS[:, :6])


@pytest.mark.exhaustive
@pytest.mark.parametrize("fields", [{"unroll_layers": True}, {"remat": "full"}])
def test_how_it_is_computed_changes_nothing(fields):
    config = dataclasses.replace(CONFIG, num_layers=6, pattern=PATTERN[::3])
    model, params = perturbed(config)
    other = mj.models.build(dataclasses.replace(config, **fields))

    def gradients(model):
        return jax.jit(
            jax.grad(lambda p: jnp.mean(model.apply({"params": p}, TOKENS).logits ** 2))
        )(params)

    for got, want in zip(
        jax.tree.leaves(gradients(other)), jax.tree.leaves(gradients(model)), strict=True
    ):
        assert np.linalg.norm(got - want) <= 1e-4 * np.linalg.norm(want)
        assert np.linalg.norm(want) > 0


def test_json_keeps_every_layer():
    plain = json.loads(json.dumps(config_json.model_to_dict(CONFIG)))
    assert plain["pattern"][1]["mixer"]["class"] == "Mamba2Spec"
    assert config_json.model_from_dict(plain) == CONFIG
    plain["pattern"][0]["mixer"]["class"] = "Mamba9Spec"
    with pytest.raises(ValueError, match=r"pattern\[0\].mixer.class is 'Mamba9Spec'; allowed: "):
        config_json.model_from_dict(plain)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_layers": 4}, "num_layers must be at least 5, the layers of first and of one"),
        ({"pattern": ()}, "pattern must have at least one layer, got none"),
        ({"pattern": ("attention",)}, "pattern must be a tuple of Layer, got"),
        ({"first": (Layer(AttentionSpec(num_heads=3)),)}, "model_dim must be a multiple of num_h"),
    ],
)
def test_layers_that_cannot_be_are_refused(fields, message):
    with pytest.raises(ValueError, match=message) as error:
        dataclasses.replace(CONFIG, **fields)
    assert "\n" not in str(error.value)


def test_what_is_given_many_times_is_refused():
    """Later stages get a value once, so a layer that is repeated cannot give one."""
    given = Layer(FirstSpec(num_heads=4), WIDE)
    config = dataclasses.replace(CONFIG, first=(), pattern=(given,), num_layers=2)
    with pytest.raises(ValueError, match="layers of stage 'layers' give values, 2 times; allowed"):
        abstract_params(mj.models.build(config))
