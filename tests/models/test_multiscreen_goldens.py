"""Multiscreen against recorded PyTorch runs; tolerances are those of the goldens' README."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import multiscreen_jax as mj
from tests.goldens import golden_names
from tests.marks import slow_unless
from tests.models.golden_case import dense_loss, load_case

NAMES = sorted(
    {n.split("model_")[1].split(".")[0] for n in golden_names("multiscreen", "model_*.npz")}
)
IMPLEMENTATIONS = ("reference", "chunked")
WRAPPED = ("psi4_T48", "wrap_smallth")  # positions absolute, and wrapped


def assert_near(given, expected, atol, rtol=0.0, name=""):
    np.testing.assert_allclose(
        np.asarray(given), np.asarray(expected), atol=atol, rtol=rtol, err_msg=name
    )


def loss_logits_gradient(case):
    return jax.jit(
        jax.value_and_grad(lambda p: dense_loss(case.model, p, case.tokens), has_aux=True)
    )(case.params)


@pytest.mark.parametrize("implementation", slow_unless(("chunked",), IMPLEMENTATIONS))
@pytest.mark.parametrize("name", NAMES)
def test_logits_loss_and_every_gradient(name, implementation):
    case = load_case(name, implementation=implementation)
    (loss, logits), gradient = loss_logits_gradient(case)
    assert_near(logits, case.expected["logits"], atol=5e-5, rtol=1e-5)
    assert_near(loss, case.expected["loss"], atol=1e-5)
    gradient = mj.convert.to_torch("multiscreen/paper", gradient, case.config)
    expected = {
        k.removeprefix("grad/"): case.expected[k]
        for k in case.expected.files
        if k.startswith("grad/")
    }
    assert gradient.keys() == expected.keys()
    for key, value in expected.items():
        assert_near(gradient[key], value, atol=2e-5 + 1e-4 * np.abs(value).max(), name=key)


@pytest.mark.parametrize("name", NAMES)
def test_float64_run_matches_float64_logits(name):
    with jax.enable_x64(True):
        for implementation in IMPLEMENTATIONS:
            case = load_case(name, dtype="float64", implementation=implementation)
            loss, logits = jax.jit(lambda p, c=case: dense_loss(c.model, p, c.tokens))(case.params)
            assert logits.dtype == jnp.float64
            assert_near(logits, case.expected["logits_f64"], atol=1e-9)
            assert_near(loss, case.expected["loss_f64"], atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_hidden_states_and_the_inside_of_every_tile(name):
    case = load_case(name, implementation="reference")
    out, sown = jax.jit(
        lambda p, t: case.model.apply({"params": p}, t, method="trunk", mutable=["intermediates"])
    )(case.params, case.tokens)
    layers = sown["intermediates"]["layers"]
    tiles = layers["tiles"]
    hidden = [*layers["residual"], out[0]]
    assert len(hidden) == case.num_layers + 1
    for i, x in enumerate(hidden):
        assert_near(x, case.expected[f"hidden/{i}"], atol=5e-5, rtol=1e-5, name=f"hidden/{i}")
    maps = mj.inspect.relevance_maps(case.model, case.params, case.tokens[:1])
    for i in range(case.num_layers):
        aux = {
            k.split("/")[2]: case.expected[k]
            for k in case.expected.files
            if k.startswith(f"aux/{i}/")
        }
        assert_near(tiles["window"][i], aux["w"], atol=0, rtol=1e-6)
        assert_near(tiles["width"][i], aux["r"], atol=1e-6)
        pre_tanhnorm = tiles["pre_tanhnorm"][i].transpose(0, 2, 1, 3)
        assert_near(pre_tanhnorm, aux["pre_tanhnorm"], atol=1e-5)
        assert_near(tiles["screening_output"][i], aux["screening_output"], atol=1e-5)
        assert_near(tiles["delta"][i], aux["delta"], atol=1e-5)
        if "gate" in aux:
            assert_near(tiles["gate"][i], aux["gate"], atol=1e-5)
        relevance, expected = maps.relevance[i], aux["relevance"][0]
        assert_near(relevance, expected, atol=1e-5)
        clear = (expected > 1e-5) | (relevance > 1e-5)
        np.testing.assert_array_equal((relevance > 0)[clear], (expected > 0)[clear])


@pytest.mark.parametrize("split", slow_unless(("decode",), ("decode", "chunked")))
@pytest.mark.parametrize("name", NAMES)
def test_cached_calls_match_recorded_decoding(name, split):
    case = load_case(name, implementation="reference")
    apply = jax.jit(lambda p, t, c: case.model.apply({"params": p}, t, cache=c))
    cache = case.model.init_cache(case.params, *case.tokens.shape)
    begin, logits = 0, []
    for cut in case.expected[f"{split}/cuts"]:
        out = apply(case.params, case.tokens[:, begin : begin + int(cut)], cache)
        cache, begin = out.cache, begin + int(cut)
        logits.append(out.logits)
    assert begin == case.tokens.shape[1]
    assert_near(np.concatenate(logits, 1), case.expected[f"{split}/logits"], atol=5e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", slow_unless(WRAPPED, NAMES, exhaustive=NAMES))
def test_dieod_positions_wrap_where_the_file_says_so(name):
    spec = load_case(name, expected=f"model_{name}.dieod", implementation="reference")
    wrap_length = {"wrap_smallth": 24}.get(name, 4096)
    case = load_case(
        name,
        expected=f"model_{name}.dieod",
        position_rule="wrap",
        wrap_length=wrap_length,
        implementation="reference",
    )
    (_, logits), gradient = loss_logits_gradient(case)
    assert_near(logits, case.expected["logits"], atol=5e-5, rtol=1e-5)
    _, absolute = jax.jit(lambda p: dense_loss(spec.model, p, spec.tokens))(spec.params)
    differs = np.abs(absolute - spec.expected["logits"]).max() > 0.1
    assert differs == (name == "wrap_smallth")  # the wrap rule is another function, on purpose

    gradient = mj.convert.to_torch("multiscreen/dieod", gradient, case.config)
    for key, value in gradient.items():
        expected = case.expected[f"grad/{key}"]
        assert_near(value, expected, atol=2e-5 + 1e-4 * np.abs(expected).max(), name=key)

    cache = case.model.init_cache(case.params, *case.tokens.shape)
    apply = jax.jit(lambda p, t, c: case.model.apply({"params": p}, t, cache=c))
    out = apply(case.params, case.tokens[:, :30], cache)
    rest = apply(case.params, case.tokens[:, 30:], out.cache)
    both = np.concatenate([out.logits, rest.logits], 1)
    assert_near(both, case.expected["logits"], atol=5e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", golden_names("multiscreen", "infrule_*.npz"))
def test_windows_beyond_the_trained_length_become_infinite(name):
    golden = name.removeprefix("multiscreen/").removesuffix(".npz")
    model_name = golden.removeprefix("infrule_").removesuffix(".exveria")
    train = load_case(model_name, expected=golden)
    infer = load_case(
        model_name,
        expected=golden,
        infinite_windows=True,
        trained_length=int(train.expected["max_train_seq_len"]),
    )
    for case, rule in ((train, "train_rule"), (infer, "inference_rule")):
        _, logits = jax.jit(lambda p, c=case: dense_loss(c.model, p, c.tokens))(case.params)
        assert_near(logits, case.expected[f"{rule}/logits"], atol=5e-5, rtol=1e-5, name=rule)
        for row in range(case.tokens.shape[0]):
            maps = mj.inspect.relevance_maps(case.model, case.params, case.tokens[row : row + 1])
            for i in range(case.num_layers):
                expected = case.expected[f"{rule}/relevance/{i}"][row]
                assert_near(maps.relevance[i], expected, atol=1e-5, name=f"{rule} layer {i}")
    assert np.isinf(np.asarray(maps.window)).any()
