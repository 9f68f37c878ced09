"""Multiscreen: counts, initialisation, causality, isolation, finite gradients, decoding."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import multiscreen_jax as mj
from multiscreen_jax.mixers.screening import tile_window
from multiscreen_jax.models.multiscreen import PSI
from pallas_kernels.screening.chunked import screening_chunked
from tests.marks import slow_unless

SMALL = dict(vocab_size=61, model_dim=24, num_layers=2, num_heads=4, key_dim=8, value_dim=12)


def initial(model, seed=0):
    return jax.jit(model.init)(jax.random.key(seed), jnp.zeros((1, 2), jnp.int32))["params"]


def small_model(seed=0, windows=(2.5, 9.0, 40.0, 300.0), logit_width=1.5, **settings):
    """A model whose tiles accept many keys, with the given windows in every layer.

    The dense op compiles fastest; tests that are about the default one say so.
    """
    settings = {"implementation": "reference", **settings}
    config = mj.models.MultiscreenConfig(**{**SMALL, **settings})
    model = mj.models.Multiscreen(config)
    params = initial(model, seed + 1)
    tiles = params["layers"]["tiles"]
    log_window = jnp.log(jnp.asarray(windows, jnp.float32) - 1)
    tiles["log_window"] = jnp.broadcast_to(log_window, tiles["log_window"].shape)
    tiles["logit_width"] = jnp.full_like(tiles["logit_width"], logit_width)
    tiles["log_output_scale"] = jnp.zeros_like(tiles["log_output_scale"])
    tiles["output"] = tiles["output"] * 10
    return model, params


def rings_of(cache):
    (rings,) = cache.parts["layers"]
    return rings


def random_tokens(length, batch=1, seed=3, vocab_size=61):
    return jax.random.randint(jax.random.key(seed), (batch, length), 0, vocab_size)


@functools.cache
def compiled(model):
    return jax.jit(lambda p, t, s, c: model.apply({"params": p}, t, segment_ids=s, cache=c))


def call(model, params, tokens, segment_ids=None, cache=None):
    return compiled(model)(params, tokens, segment_ids, cache)


def run(model, params, tokens, segment_ids=None):
    return np.asarray(call(model, params, tokens, segment_ids).logits)


COUNTS = {  # psi: (total with 50257 tokens, without the embedding, total with 256 tokens)
    4: (861_506, 57_394, 61_490),
    8: (4_134_146, 917_698, 934_082),
    12: (11_882_306, 4_645_298, 4_682_162),
    16: (27_546_626, 14_680_834, 14_746_370),
    24: (103_267_586, 74_319_554, 74_467_010),
    32: (286_347_266, 234_884_098, 235_146_242),
    48: (1_304_884_226, 1_189_092_098, 1_189_681_922),
    64: (3_963_961_346, 3_758_108_674, 3_759_157_250),
}


@pytest.mark.parametrize("psi", COUNTS)
def test_exact_parameter_counts(psi):
    total, rest, bytes_total = COUNTS[psi]
    config = mj.models.MultiscreenConfig.from_psi(psi)
    assert config.parameter_count() == total
    assert total - config.vocab_size * config.model_dim == rest
    with_bytes = mj.models.MultiscreenConfig.from_psi(psi, vocab_size=256)
    assert with_bytes.parameter_count() == bytes_total
    shapes = jax.eval_shape(
        mj.models.Multiscreen(config).init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32)
    )
    assert sum(x.size for x in jax.tree.leaves(shapes["params"])) == total


def test_presets_are_the_papers_sizes():
    sizes = {"4m": 4_134_146, "28m": 27_546_626, "286m": 286_347_266}
    sizes |= {"1.3b": 1_304_884_226, "4b": 3_963_961_346}
    assert sizes.keys() == PSI.keys()
    for name, count in sizes.items():
        assert mj.models.MultiscreenConfig.preset(name).parameter_count() == count
        assert mj.models.config_for(f"multiscreen-{name}").parameter_count() == count


def test_initialisation_table():
    config = mj.models.MultiscreenConfig.from_psi(8, vocab_size=256)
    params = initial(mj.models.Multiscreen(config))
    tiles = params["layers"]["tiles"]
    expected = {"query": 0.1 / 4, "key": 0.1 / 4, "value": 0.1 / 8, "gate": 0.1, "output": 0.1 / 8}
    for name, deviation in expected.items():
        assert abs(float(tiles[name].std()) / deviation - 1) < 0.01, name
    assert not np.allclose(tiles["query"][0], tiles["query"][1])  # layers differ
    assert abs(float(params["embedding"]["rows"].std()) * 80 - 1) < 0.02
    assert params["embedding"]["log_input_scale"] == 0
    np.testing.assert_allclose(params["embedding"]["log_output_scale"], np.log(8), rtol=1e-6)
    np.testing.assert_allclose(tiles["log_window"][3], np.linspace(0, np.log(256), 8), rtol=1e-6)
    np.testing.assert_array_equal(tiles["logit_width"], 0)
    np.testing.assert_allclose(tiles["log_output_scale"], -np.log(64) / 2, rtol=1e-6)


@pytest.mark.slow
def test_embedding_scale_leaves_the_initial_function_alone():
    tokens = random_tokens(20, vocab_size=61)
    outs = []
    for scale in (0.1, 1.0):
        config = mj.models.MultiscreenConfig(
            **SMALL, embedding_init_scale=scale, implementation="reference"
        )
        model = mj.models.Multiscreen(config)
        outs.append(run(model, initial(model), tokens))
    np.testing.assert_allclose(outs[0], outs[1], atol=1e-4)


@pytest.mark.parametrize(
    ("psi", "vocab_size", "loss"),
    [(8, 256, 8.1), pytest.param(8, 50257, 11.4, marks=pytest.mark.slow)],
)
def test_initial_loss_is_where_the_specification_puts_it(psi, vocab_size, loss):
    config = mj.models.MultiscreenConfig.from_psi(
        psi, vocab_size=vocab_size, implementation="reference"
    )
    model = mj.models.Multiscreen(config)
    tokens = random_tokens(129, batch=2, vocab_size=vocab_size)
    given = jax.jit(lambda p: mj.losses.next_token(model, p, {"tokens": tokens}))(initial(model))
    assert abs(float(given) - loss) < 0.3


@pytest.mark.parametrize("dtype", slow_unless(("bfloat16",), ("float32", "bfloat16")))
def test_no_future_token_leaks(dtype):
    model, params = small_model(
        dtype=dtype, windows=(2.5, 40.0, 300.0, 1e9), implementation="chunked"
    )
    tokens = random_tokens(700)
    changed = tokens.at[0, 657].add(1) % 61
    before, after = run(model, params, tokens), run(model, params, changed)
    np.testing.assert_array_equal(before[:, :657], after[:, :657])
    assert (before[:, 657:] != after[:, 657:]).any()


@pytest.mark.slow
def test_no_future_token_leaks_beyond_8192():
    model, params = small_model(
        dtype="bfloat16", windows=(2.5, 40.0, 300.0, 9000.0), implementation="chunked"
    )
    tokens = random_tokens(8400)
    changed = tokens.at[0, 8300].add(1) % 61
    before, after = run(model, params, tokens), run(model, params, changed)
    np.testing.assert_array_equal(before[:, :8300], after[:, :8300])
    assert (before[:, 8300:] != after[:, 8300:]).any()


@pytest.mark.slow
def test_no_future_token_leaks_in_decoding():
    model, params = small_model(dtype="bfloat16", implementation="chunked")
    tokens = random_tokens(300)
    changed = tokens.at[0, 290].add(1) % 61

    def decode(tokens):
        cache = model.init_cache(params, 1, 300)
        logits = []
        for begin, end in [(0, 270), *((i, i + 1) for i in range(270, 300))]:
            out = call(model, params, tokens[:, begin:end], cache=cache)
            cache = out.cache
            logits.append(out.logits)
        return np.concatenate(logits, 1)

    before, after = decode(tokens), decode(changed)
    np.testing.assert_array_equal(before[:, :290], after[:, :290])
    assert (before[:, 290:] != after[:, 290:]).any()


@pytest.mark.parametrize("dtype", slow_unless(("bfloat16",), ("float32", "bfloat16")))
def test_gradient_to_later_tokens_is_exactly_zero(dtype):
    model, params = small_model(
        dtype=dtype, windows=(2.5, 40.0, 300.0, 1e9), implementation="chunked"
    )
    tokens, t = random_tokens(100), 57
    x = jax.jit(
        lambda p, t: model.apply({"params": p}, t, method=lambda m, y: m.embedding.encode(y))
    )(params, tokens)

    def logit_sum(x):
        def through_layers(m, x):
            return m.blocks(x)[0] @ m.output_rows().T

        return model.apply({"params": params}, x, method=through_layers)[0, t].sum()

    gradient = np.asarray(jax.jit(jax.grad(logit_sum))(x))[0]
    assert (gradient[: t + 1] != 0).any(axis=1).sum() > 10
    np.testing.assert_array_equal(gradient[t + 1 :], 0)


def test_packed_documents_do_not_see_each_other():
    model, params = small_model(
        dtype="bfloat16", windows=(2.5, 40.0, 300.0, 1e9), implementation="chunked"
    )
    lengths = (37, 1, 90, 64)
    segments = np.repeat(np.arange(1, 5), lengths)
    segments = jnp.asarray(np.pad(segments, (0, 8)))[None]
    tokens = random_tokens(200)
    for document in (1, 3):
        inside = np.asarray(segments[0] == document)
        changed = jnp.where(inside, (tokens + 7) % 61, tokens)
        before = run(model, params, tokens, segment_ids=segments)
        after = run(model, params, changed, segment_ids=segments)
        np.testing.assert_array_equal(before[0, ~inside], after[0, ~inside])
        assert (before[0, inside] != after[0, inside]).any()


@pytest.mark.slow
def test_packed_document_equals_the_document_alone():
    model, params = small_model(windows=(2.5, 40.0, 300.0, 1e9), implementation="chunked")
    alone = random_tokens(70, seed=9)

    @jax.jit
    @jax.value_and_grad
    def document_loss(params, row, segments, inside):
        logits = model.apply({"params": params}, row, segment_ids=segments).logits
        return jnp.sum(jax.nn.log_softmax(logits[0])[:, 5] * inside)

    def loss_with_document_at(start):
        before, after = random_tokens(200)[:, :start], random_tokens(200)[:, start + 70 :]
        row = jnp.concatenate([before, alone, after], axis=1)
        segments = np.repeat([1, 2, 3], [start, 70, 130 - start])
        return document_loss(params, row, jnp.asarray(segments)[None], segments == 2)

    single, gradient = jax.jit(
        jax.value_and_grad(
            lambda p: jnp.sum(jax.nn.log_softmax(model.apply({"params": p}, alone).logits[0])[:, 5])
        )
    )(params)
    for start in (1, 37, 63, 64, 65):
        packed, packed_gradient = loss_with_document_at(start)
        np.testing.assert_allclose(packed, single, rtol=1e-5)
        for a, b in zip(jax.tree.leaves(packed_gradient), jax.tree.leaves(gradient), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5 + 1e-5 * np.abs(b).max())


@pytest.mark.parametrize("length", [1, 130])
@pytest.mark.parametrize("implementation", slow_unless(("chunked",), ("reference", "chunked")))
def test_gradients_stay_finite_when_nearly_all_keys_are_rejected(length, implementation):
    # The last window is infinite by the inference rule, which the parameters' gradient survives.
    windows = (1.0001, 2.0, 60.0, 1000.0)
    model, params = small_model(
        windows=windows, implementation=implementation, infinite_windows=True, trained_length=900
    )
    tokens = random_tokens(length + 1)
    gradient_of = jax.jit(
        jax.value_and_grad(lambda p: mj.losses.next_token(model, p, {"tokens": tokens}))
    )
    for width in (0.02, 0.5, 0.98):
        tiles = params["layers"]["tiles"]
        logit = jnp.full_like(tiles["logit_width"], np.log(width / (1 - width)))
        tiles = {**tiles, "logit_width": logit}
        loss, gradient = gradient_of({**params, "layers": {"tiles": tiles}})
        assert np.isfinite(loss)
        finite = jax.tree.map(lambda g: bool(jnp.isfinite(g).all()), gradient)
        assert all(jax.tree.leaves(finite)), finite
        assert not gradient["layers"]["tiles"]["log_window"][:, 3].any()


@pytest.mark.slow
@pytest.mark.parametrize("implementation", slow_unless(("chunked",), ("reference", "chunked")))
def test_tiles_as_wide_and_as_narrow_as_numbers_go_stay_finite(implementation):
    model, params = small_model(implementation=implementation)
    tokens = jnp.full((1, 9), 3)  # all equal: every similarity is 1
    gradient_of = jax.jit(
        jax.value_and_grad(lambda p: mj.losses.next_token(model, p, {"tokens": tokens}))
    )
    tiles = params["layers"]["tiles"]
    windows = jnp.array([60.0, 88.7, 89.0, jnp.inf])
    widths = jnp.array([-30.0, -87.0, -104.0, -jnp.inf])
    for changes in ({"log_window": windows}, {"logit_width": widths}):
        tiles = {**tiles, **{k: jnp.broadcast_to(v, (2, 4)) for k, v in changes.items()}}
        extreme = {**params, "layers": {"tiles": tiles}}
        loss, gradient = gradient_of(extreme)
        assert np.isfinite(loss)
        assert np.isfinite(np.concatenate([x.ravel() for x in jax.tree.leaves(gradient)])).all()
        if "log_window" in changes:
            assert not gradient["layers"]["tiles"]["log_window"][:, 2:].any()
        cache = model.init_cache(extreme, 1, 16)
        assert np.isinf(tile_window(model.config.tiles(), windows)[2:]).all()
        whole = run(model, extreme, tokens)
        for t in range(9):
            out = call(model, extreme, tokens[:, t : t + 1], cache=cache)
            cache = out.cache
            np.testing.assert_allclose(out.logits[:, 0], whole[:, t], rtol=1e-2, atol=1e-2)


@pytest.mark.slow
def test_a_zero_row_of_the_embedding_is_harmless():
    model, params = small_model()
    params["embedding"]["rows"] = params["embedding"]["rows"].at[5].set(0)
    tokens = random_tokens(30).at[0, 4:8].set(5)
    gradient = jax.jit(jax.grad(lambda p: mj.losses.next_token(model, p, {"tokens": tokens})))(
        params
    )
    assert all(jnp.isfinite(g).all() for g in jax.tree.leaves(gradient))


@pytest.mark.slow
@pytest.mark.parametrize("remat", slow_unless(("mixer",), ("full", "dots", "mixer")))
def test_remat_changes_nothing(remat):
    plain, params = small_model()
    other, _ = small_model(remat=remat)
    tokens = random_tokens(65)
    loss = [
        jax.jit(jax.value_and_grad(lambda p, m=m: mj.losses.next_token(m, p, {"tokens": tokens})))(
            params
        )
        for m in (plain, other)
    ]
    for a, b in zip(jax.tree.leaves(loss[0]), jax.tree.leaves(loss[1]), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_remat_mixer_keeps_what_screening_returns():
    """So the backward pass does not screen again; it keeps nothing else beyond "full"."""
    tokens = random_tokens(65)

    def kept(remat):
        model, params = small_model(remat=remat)

        def residuals(params):
            return jax.vjp(lambda p: mj.losses.next_token(model, p, {"tokens": tokens}), params)[1]

        leaves = jax.tree.leaves(jax.eval_shape(residuals, params))
        return sum(leaf.size for leaf in leaves), model.config

    (mixer, config), (full, _) = kept("mixer"), kept("full")
    assert mixer - full == 64 * config.num_layers * config.num_heads * config.value_dim


def test_unrolled_layers_are_the_same_function():
    model, params = small_model()
    unrolled, _ = small_model(unroll_layers=True)
    tokens = random_tokens(30)
    np.testing.assert_allclose(run(model, params, tokens), run(unrolled, params, tokens), atol=1e-5)


def test_cache_bytes_do_not_grow_with_the_context():
    model, params = small_model(windows=(1.9, 9.5, 39.5, 299.5))
    sizes = {
        length: sum(x.nbytes for x in jax.tree.leaves(model.init_cache(params, 1, length)))
        for length in (4096, 1_000_000)
    }
    assert sizes[4096] == sizes[1_000_000]
    slots = 768  # the multiple of 128 after 2 * (2 + 10 + 40 + 300)
    assert rings_of(model.init_cache(params, 1, 4096)).keys.shape == (1, slots, SMALL["key_dim"])


def test_rings_lose_nothing_long_after_they_have_wrapped():
    model, params = small_model(windows=(2.0, 9.5, 40.0, 33.3))
    tokens = random_tokens(400)
    full = run(model, params, tokens)
    cache = model.init_cache(params, 1, 400)
    assert int(rings_of(cache).size.sum()) == 2 * (2 + 10 + 40 + 34)
    out = call(model, params, tokens[:, :350], cache=cache)
    logits = [out.logits]
    for i in range(350, 400):
        out = call(model, params, tokens[:, i : i + 1], cache=out.cache)
        logits.append(out.logits)
    np.testing.assert_allclose(np.concatenate(logits, 1), full, atol=2e-5)


def test_decoding_reads_only_live_slots():
    """A mistake in the ring shows: with too small a ring the answer changes."""
    model, params = small_model(windows=(2.0, 9.5, 40.0, 33.3))
    tokens = random_tokens(120)
    full = run(model, params, tokens)
    cache = model.init_cache(params, 1, 120)
    rings = rings_of(cache)
    rings = dataclasses.replace(rings, size=jnp.maximum(rings.size // 2, 1))
    cache = cache.replace(parts={"layers": (rings,)})
    out = call(model, params, tokens[:, :100], cache=cache)
    rest = call(model, params, tokens[:, 100:], cache=out.cache)
    assert np.abs(np.asarray(rest.logits) - full[:, 100:]).max() > 1e-3


def test_model_flops_follow_the_windows():
    config = mj.models.MultiscreenConfig.from_psi(4, vocab_size=256)
    length, tiles = 100, 16
    windows = np.full((4, 4), 10.0)
    pairs = tiles * sum(min(i + 1, 10) for i in range(length))
    projections = 2 * length * tiles * 16 * (2 * 16 + 3 * 64)
    expected = projections + 2 * (16 + 64) * pairs + 2 * length * 256 * 16
    assert config.forward_flops(length, windows) == expected
    dense = config.forward_flops(length, np.full((4, 4), np.inf))
    assert dense - expected == 160 * (tiles * length * (length + 1) / 2 - pairs)


def test_flops_formula_agrees_with_the_compiler():
    """Counted where the program has no loops: dense reference op, unrolled layers."""
    config = mj.models.MultiscreenConfig(
        vocab_size=128, model_dim=256, num_layers=2, num_heads=4,
        implementation="reference", unroll_layers=True,
    )  # fmt: skip
    model = mj.models.Multiscreen(config)
    tokens = jnp.zeros((1, 64), jnp.int32)
    params = jax.eval_shape(model.init, jax.random.key(0), tokens)["params"]
    compiled = jax.jit(lambda p, t: model.apply({"params": p}, t).logits).lower(params, tokens)
    counted = compiled.compile().cost_analysis()["flops"]
    # The dense op visits every pair, also those in the future.
    dense = config.forward_flops(64, np.full((2, 4), np.inf)) + 160 * 8 * 64 * 63 / 2
    assert abs(counted / dense - 1) < 0.1


def test_second_order_and_forward_mode_say_why_not():
    q = jnp.ones((1, 4, 1, 4)) / 2
    args = (q, q, q, jnp.ones(1) * 3, jnp.ones(1) / 2)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(lambda q: screening_chunked(q, *args[1:]), (q,), (q,))
