"""The Transformer baseline: counts, init, packing, precision, cache, bad input."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multiscreen_jax.layers.rotary import rotary_angles, rotate
from multiscreen_jax.models.transformer import ARCHITECTURE, Transformer, TransformerConfig
from tests.marks import slow_unless
from tests.suites import cache_suite

# Grouped-query, untied, every optional part on: nothing is left out by a default.
CONFIG = TransformerConfig(
    vocab_size=61, model_dim=32, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=6,
    feed_forward_dim=48, tie_embeddings=False, final_norm_gain=True, rope_factor=2.0,
)  # fmt: skip
TOKENS = jax.random.randint(jax.random.key(1), (2, 23), 0, CONFIG.vocab_size)


@functools.cache
def params_of(config):
    """Parameters of size one: at the initial 0.02 attention is flat and hides position errors."""
    params = jax.jit(Transformer(config).init)(jax.random.key(0), TOKENS[:, :4])["params"]
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    scaled = [
        leaf + 0.2 * jax.random.normal(key, leaf.shape, leaf.dtype)
        for leaf, key in zip(leaves, keys, strict=True)
    ]
    return jax.tree.unflatten(treedef, scaled)


@functools.partial(jax.jit, static_argnums=0)
def _logits(config, params, tokens, segment_ids):
    return Transformer(config).apply({"params": params}, tokens, segment_ids).logits


def apply(config, tokens, segment_ids=None, params=None):
    params = params_of(config) if params is None else params
    return _logits(config, params, tokens, segment_ids)


@pytest.mark.slow
def test_exact_counts():
    paper = {"8m": 7613312, "18m": 17584384, "45m": 44609024, "124m": 123550464, "353m": 353453056}
    assert paper.keys() == ARCHITECTURE.presets.keys()
    for name, total in paper.items():
        config = TransformerConfig.preset(name)
        tree = jax.eval_shape(
            Transformer(config).init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32)
        )
        assert config.parameter_count() == total
        assert sum(leaf.size for leaf in jax.tree.leaves(tree["params"])) == total
    assert sum(leaf.size for leaf in jax.tree.leaves(params_of(CONFIG))) == CONFIG.parameter_count()


@pytest.mark.slow
def test_initial_scales():
    config = TransformerConfig(vocab_size=256, model_dim=64, num_layers=2, num_heads=4)
    params = jax.jit(Transformer(config).init)(jax.random.key(0), TOKENS)["params"]
    layers = params["layers"]
    narrow = [layers["attention"]["output"], layers["feed_forward"]["down"]]
    wide = [params["embedding"]["rows"], layers["attention"]["query"], layers["feed_forward"]["up"]]
    for leaf in wide:
        np.testing.assert_allclose(np.std(leaf), 0.02, rtol=0.03)
    for leaf in narrow:
        np.testing.assert_allclose(np.std(leaf), 0.02 / 4**0.5, rtol=0.03)
    assert np.all(layers["attention_norm"]["scale"] == 1)
    first, second = layers["attention"]["query"]
    assert not np.allclose(first, second), "layers must not start equal"


@pytest.mark.parametrize("name", ["8m", "45m"])
def test_flops_match_the_compiler(name):
    # One tile of attention holds the whole square at this length, hence the causal half is added.
    length = 64
    config = TransformerConfig.preset(name, vocab_size=512, unroll_layers=True)
    model = Transformer(config)
    tokens = jax.ShapeDtypeStruct((1, length), jnp.int32)
    params = jax.eval_shape(model.init, jax.random.key(0), tokens)["params"]
    compiled = jax.jit(lambda p, t: model.apply({"params": p}, t).logits).lower(params, tokens)
    counted = compiled.compile().cost_analysis()["flops"]
    assert abs(counted / config.forward_flops(length) - 1) < 0.1


def test_rotation_is_relative_and_follows_the_definition():
    x = jax.random.normal(jax.random.key(0), (1, 4, 1, 6))
    positions = jnp.asarray([[0, 1, 5, 9]])
    turned = rotate(x, rotary_angles(positions, 6, 100.0, 2.0, jnp.float32))
    for t, position in enumerate(positions[0]):
        for c in range(3):
            angle = position / 2.0 * 100.0 ** (-2 * c / 6)
            pair = complex(x[0, t, 0, c], x[0, t, 0, c + 3]) * np.exp(1j * float(angle))
            np.testing.assert_allclose(turned[0, t, 0, c], pair.real, atol=1e-6)
            np.testing.assert_allclose(turned[0, t, 0, c + 3], pair.imag, atol=1e-6)


def test_packed_documents_are_alone_and_isolated():
    segment_ids = jnp.asarray([[1] * 5 + [2] * 9 + [3] * 6 + [0] * 3])
    row = TOKENS[:1]
    packed = apply(CONFIG, row, segment_ids)
    for document in (1, 2, 3):
        (places,) = np.nonzero(np.asarray(segment_ids[0]) == document)
        first = row[:, places[0] :]  # what follows cannot be seen; one shape less to compile
        alone = apply(CONFIG, jnp.pad(first, ((0, 0), (0, 23 - first.shape[1]))))
        np.testing.assert_allclose(packed[0, places], alone[0, : len(places)], rtol=1e-5, atol=1e-5)
    second = segment_ids == 2
    changed = apply(CONFIG, jnp.where(second, (row + 1) % CONFIG.vocab_size, row), segment_ids)
    np.testing.assert_array_equal(packed[~second], changed[~second])


def test_bfloat16_does_not_see_the_future():
    config = TransformerConfig(
        vocab_size=61, model_dim=16, num_layers=2, num_heads=2, dtype="bfloat16"
    )
    tokens = jax.random.randint(jax.random.key(3), (1, 700), 0, 61)
    logits = apply(config, tokens)
    assert logits.dtype == jnp.float32
    changed = apply(config, tokens.at[0, 657].add(1) % 61)
    np.testing.assert_array_equal(logits[:, :657], changed[:, :657])
    assert jnp.any(logits[:, 657:] != changed[:, 657:])


def test_bfloat16_is_near_float32():
    want = apply(CONFIG, TOKENS)
    got = apply(dataclasses.replace(CONFIG, dtype="bfloat16"), TOKENS, params=params_of(CONFIG))
    assert 0 < jnp.sqrt(jnp.mean((got - want) ** 2)) / jnp.std(want) < 0.03


@pytest.mark.slow
def test_float64_throughout():
    with jax.enable_x64(True):
        config = dataclasses.replace(CONFIG, dtype="float64", param_dtype="float64")
        params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), params_of(CONFIG))
        jaxpr = jax.make_jaxpr(lambda p: apply(config, TOKENS, params=p))(params)
        assert "f32" not in str(jaxpr)
        logits = apply(config, TOKENS, params=params)
        np.testing.assert_allclose(logits, apply(CONFIG, TOKENS), rtol=1e-4, atol=1e-4)
        model, steps = Transformer(config), []
        cache = model.init_cache(params, *TOKENS.shape)
        for chunk in jnp.split(TOKENS, [9, 10], axis=1):
            out = model.apply({"params": params}, chunk, cache=cache)
            cache = out.cache
            steps.append(out.logits)
        np.testing.assert_allclose(jnp.concatenate(steps, axis=1), logits, rtol=1e-11, atol=1e-11)


@functools.cache
def _plain_gradients():
    return _gradients(CONFIG)


def _gradients(config):
    def loss(params):
        return jnp.mean(apply(config, TOKENS, params=params) ** 2)

    return jax.jit(jax.grad(loss))(params_of(CONFIG))


@pytest.mark.parametrize(
    ("remat", "unroll"),
    slow_unless(
        (("none", True), ("full", False)),
        (("none", True), ("full", False), ("full", True), ("dots", False), ("mixer", False)),
    ),
)
def test_remat_and_loop_change_nothing(remat, unroll):

    got = _gradients(dataclasses.replace(CONFIG, remat=remat, unroll_layers=unroll))
    want = _plain_gradients()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), got, want)


def test_remat_policies_keep_what_they_say():
    """What a forward pass leaves for the backward one, beyond what every policy leaves."""
    tokens = jnp.zeros((4, 128), jnp.int32)

    def kept_bytes(remat):
        config = TransformerConfig(
            vocab_size=64, model_dim=64, num_layers=8, num_heads=4, remat=remat
        )
        model = Transformer(config)
        params = jax.eval_shape(model.init, jax.random.key(0), tokens)["params"]

        def residuals(params):
            return jax.vjp(lambda p: model.apply({"params": p}, tokens).logits, params)[1]

        leaves = jax.tree.leaves(jax.eval_shape(residuals, params))
        return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)

    none, dots, mixer, full = map(kept_bytes, ("none", "dots", "mixer", "full"))
    stream = 8 * tokens.size * 64 * 4  # one activation of width D, all layers
    assert mixer - full == stream
    assert dots - full > 5 * stream  # query, key, value, gate, up
    assert none > dots + 5 * stream


def test_bad_token_is_loud():
    with pytest.raises(ValueError, match=r"\[0, 61\), got 61"):
        Transformer(CONFIG).apply({"params": params_of(CONFIG)}, TOKENS.at[1, 3].set(61))
    logits = apply(CONFIG, TOKENS.at[1, 3].set(-1))
    assert jnp.isnan(logits[1, 3:]).all()
    assert jnp.isfinite(logits[0]).all()


def test_cache_every_split():
    cache_suite.check_every_split(Transformer(CONFIG), params_of(CONFIG), TOKENS[:, :9])


@pytest.mark.slow
def test_cache_documents_cut_by_chunks():
    segment_ids = jnp.asarray([[1] * 5 + [2] * 9 + [3] * 6 + [0] * 3, [1] * 20 + [2] * 3])
    cache_suite.check_uneven_chunks(
        Transformer(CONFIG), params_of(CONFIG), TOKENS, (7, 1, 7, 1, 7), segment_ids
    )


def test_cache_ragged_batch():
    model, params = Transformer(CONFIG), params_of(CONFIG)
    cache_suite.check_ragged_batch(model, params, TOKENS, (11, 4))


@pytest.mark.slow
def test_cache_overflow_is_loud():
    cache_suite.check_overflow_is_loud(Transformer(CONFIG), params_of(CONFIG), TOKENS[:, :6])


def test_cache_dtype_and_arguments():
    model = Transformer(CONFIG)
    cache = model.init_cache(None, 2, 5, dtype="bfloat16")
    (kept,) = cache.parts["layers"]
    assert kept["keys"].shape == (3, 2, 2, 5, 6)
    assert kept["keys"].dtype == jnp.bfloat16
    with pytest.raises(ValueError, match="max_length of a cache must be an integer >= 1, got 0"):
        model.init_cache(None, 2, 0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_heads": 5}, "model_dim must be a multiple of num_heads"),
        ({"num_kv_heads": 3}, "num_heads must be a multiple of num_kv_heads"),
        ({"head_dim": 5}, "head_dim must be even"),
        ({"rope_factor": 0.0}, "rope_factor must be a finite number > 0, got 0.0"),
        ({"remat": "some"}, "remat must be one of"),
        ({"dtype": "int8"}, "dtype must be one of"),
        ({"num_layers": 0}, "num_layers must be an integer >= 1, got 0"),
        ({"trained_length": -1}, "trained_length must be an integer >= 1"),
    ],
)
def test_config_errors(fields, message):
    good = {"vocab_size": 16, "model_dim": 32, "num_layers": 1, "num_heads": 4}
    with pytest.raises(ValueError, match=message):
        TransformerConfig(**{**good, **fields})


def test_unknown_preset_names_near_ones():
    with pytest.raises(ValueError, match=r"unknown transformer preset '125m'; did you mean 124m"):
        TransformerConfig.preset("125m")
