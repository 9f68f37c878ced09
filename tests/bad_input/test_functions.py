"""Bad arguments of public functions: one line, raised by the library, that says what is allowed."""

import inspect
import traceback

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import multiscreen_jax as mj
from multiscreen_jax.data import open_tokenizer
from multiscreen_jax.train import load_params
from multiscreen_jax.train.reading import find_checkpoint
from pallas_kernels import (
    delta_rule,
    gated_delta_rule,
    linear_attention,
    log_linear_gated_delta_rule,
    log_linear_ssd,
    retention,
    screening,
    ssd,
)
from pallas_kernels.attention import causal_attention
from pallas_kernels.log_linear import LogLinearState
from tests.marks import slow_unless

X = np.ones((1, 4, 2, 4), np.float32)
GATE = np.full((1, 4, 2), -0.1, np.float32)
LEVELS = np.ones((1, 4, 2, 3), np.float32)
STATE = np.zeros((1, 2, 3, 4, 4), np.float32)
QKV = {"q": X, "k": X, "v": X}
HEADS = {"window": np.float32([2, np.inf]), "width": np.float32([0.5, 0.9])}
OPS = {
    screening: QKV | HEADS,
    linear_attention: QKV,
    retention: QKV,
    ssd: QKV | {"g": GATE},
    delta_rule: QKV | {"beta": GATE},
    gated_delta_rule: QKV | {"g": GATE, "beta": GATE},
    log_linear_ssd: QKV | {"g": GATE, "level_scales": LEVELS},
    log_linear_gated_delta_rule: QKV | {"g": GATE, "beta": GATE, "level_scales": LEVELS},
    causal_attention: QKV,
}
RECURRENT = [op for op in OPS if op not in (screening, causal_attention)]
LOG_LINEAR = [log_linear_ssd, log_linear_gated_delta_rule]


def call(op, **changes):
    # Without the type checks that tests add around it: users do not have them.
    return inspect.unwrap(op)(**{**OPS[op], **changes})


def refused(function, part, *kinds):
    with pytest.raises(kinds or (ValueError, TypeError)) as raised:
        function()
    message = str(raised.value)
    assert part in message
    assert "\n" not in message
    last = traceback.extract_tb(raised.value.__traceback__)[-1].filename
    assert any(f"/{ours}/" in last for ours in ("multiscreen_jax", "pallas_kernels")), last


def named(op):
    return op.__name__


@pytest.mark.parametrize("op", OPS, ids=named)
def test_what_is_no_array(op):
    for name in OPS[op]:
        for value in (None, "text", {"a": 1}, object(), np.array(["a"]), [[1.0], [1.0, 2.0]]):
            if (op, name, value) != (retention, "g", None):
                refused(lambda n=name, v=value: call(op, **{n: v}), f"{name} must be an array of")
    refused(lambda: call(op, segment_ids="text"), "segment_ids must be an array of numbers")
    jax.eval_shape(lambda: call(op))


@pytest.mark.parametrize("op", OPS, ids=named)
def test_settings(op):
    for value in ("best", "HIGHEST!", 3, ("high",), object()):
        refused(lambda v=value: call(op, precision=v), "precision must be None, 'default', 'high'")
    for value in ("high", jax.lax.Precision.HIGHEST, ("high", "high")):
        jax.eval_shape(lambda p=value: call(op, precision=p))
    refused(lambda: call(op, segment_ids=np.int32([[1, 1, -2, -2]])), "segment_ids must be >= 0")
    refused(lambda: call(op, implementation="fast"), "implementation must be None or")
    if op is screening:
        return
    complex_number = jnp.complex64(1)
    for value in ("1", np.ones(3), np.nan, True, [1.0], 10**400, complex_number, jnp.array(True)):
        refused(lambda v=value: call(op, scale=v), "scale must be None or a finite number, got")
    for value in (2, 0.5, np.float32(0.5), jnp.float32(0.5)):
        jax.eval_shape(lambda s=value: call(op, scale=s))


@pytest.mark.parametrize("op", RECURRENT, ids=named)
def test_states_and_their_return(op):
    refused(lambda: call(op, initial_state="text"), "initial_state must be")
    refused(lambda: call(op, initial_state=X), "initial_state must be")
    refused(lambda: call(op, return_state="no"), "return_state must be True or False")
    refused(lambda: call(op, chunk_size=0.5), "chunk_size must be an integer >= 1, got 0.5")


def test_the_kind_of_linear_attention():
    refused(lambda: call(linear_attention, normalize="no"), "normalize must be True or False")


@pytest.mark.parametrize("op", LOG_LINEAR, ids=named)
def test_log_linear_states(op):
    def state(levels, length):
        return {"initial_state": LogLinearState(levels, length)}

    negative = state(STATE, np.int32([-1]))
    refused(lambda: call(op, **negative), "the length of initial_state must be >= 0, got -1")
    refused(lambda: call(op, **state(STATE, None)), "initial_state must be an array of numbers")
    refused(lambda: call(op, **state(STATE, [0.5])), "levels [B,H,L,K,V] and an integer length [B]")
    refused(lambda: call(op, **state(STATE[0], [0])), "levels [B,H,L,K,V] and an integer length")
    refused(lambda: call(op, **state(STATE[:, :1], [0])), "= (1, 2, 3, 4, 4) and length [B] = (1,)")
    for wrong in (STATE, [STATE, 0, 1]):
        refused(
            lambda w=wrong: call(op, beyond_levels="extend", initial_state=w), "be a LogLinearState"
        )


WINDOWS = [(1.0, "1 for head 1"), (0.5, "0.5 for"), (0, "0 for"), (-3, "-3 for"), (-np.inf, "-inf")]
WIDTHS = [
    (0.0, "0 for head 1"),
    (1.0, "1 for"),
    (1.5, "1.5 for"),
    (-0.1, "-0.1 for"),
    (np.inf, "inf"),
]


@pytest.mark.parametrize(
    ("name", "allowed", "cases"),
    [("window", "> 1 token", WINDOWS), ("width", "in (0, 1)", WIDTHS)],
)
def test_windows_and_widths(name, allowed, cases):
    for value, given in cases:
        numbers = HEADS[name].copy()
        numbers[1] = value
        for array in (numbers, jnp.asarray(numbers), numbers.tolist()):
            part = f"{name} must be {allowed}, got {given}"
            refused(lambda x=array: call(screening, **{name: x}), part)
        # A constant is seen inside jit, an argument is not.
        refused(lambda x=numbers: jax.jit(lambda: call(screening, **{name: x}))(), part)
        jax.jit(lambda x: call(screening, **{name: x})).lower(numbers)
    broken = np.where([False, True], np.nan, HEADS[name]).astype(np.float32)
    assert np.isnan(call(screening, **{name: broken})[:, :, 1]).all()


def test_lists_of_traced_numbers_are_taken():
    def summed(window, width):
        return call(screening, window=[window, 8.0], width=(width, 0.5)).sum()

    plain = summed(5.0, 0.4)
    np.testing.assert_allclose(jax.jit(summed)(5.0, 0.4), plain, rtol=1e-6)
    assert np.isfinite(jax.grad(summed, argnums=1)(5.0, 0.4))
    ids = jax.jit(lambda i: call(ssd, segment_ids=[[i] * QKV["q"].shape[1]])[0])
    np.testing.assert_allclose(ids(1), call(ssd)[0], rtol=1e-5)


@pytest.mark.parametrize("scale", [np.array(0.5), np.float16(0.5), jnp.bfloat16(0.5), jnp.array(2)])
def test_scalars_are_scales(scale):
    np.testing.assert_allclose(
        call(ssd, scale=scale)[0], call(ssd, scale=float(scale))[0], rtol=1e-6
    )


def test_a_screening_without_heads():
    empty = {name: np.zeros((1, 4, 0, 4), np.float32) for name in "qkv"}
    heads = {name: np.zeros(0, np.float32) for name in HEADS}
    refused(lambda: call(screening, **empty, **heads), "must not have an empty axis")


def test_saturated_tiles_are_allowed():
    """Learned windows and widths may be rounded to the ends, which the op refuses."""
    from multiscreen_jax.mixers.screening import ScreeningSpec, tile_width, tile_window

    window = tile_window(ScreeningSpec(num_heads=2), jnp.float32([-50.0, 0.0]))
    width = tile_width(jnp.float32([-200.0, 200.0]))
    call(screening, window=window, width=width)


# -- models ----------------------------------------------------------------------------------------

SHAPE = dict(vocab_size=11, model_dim=8, num_layers=2, num_heads=2)
TOKENS = jnp.array([[1, 2, 3]])


def model_of(kind, **fields):
    configs = {
        "screening": lambda **f: mj.models.MultiscreenConfig(**f, key_dim=4, value_dim=4),
        "attention": mj.models.TransformerConfig,
        "state": lambda **f: mj.models.RetNetConfig(**f, key_dim=4, value_dim=4),
        "levels": lambda **f: mj.models.LogLinearMamba2Config(
            **f, key_dim=4, value_dim=4, num_levels=5
        ),
    }
    model = mj.models.build(configs[kind](**{**SHAPE, **fields}))
    shapes = jax.eval_shape(model.init, jax.random.key(0), TOKENS)["params"]
    return model, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)


@pytest.fixture(scope="module")
def models():
    found = {kind: model_of(kind) for kind in ("screening", "attention", "state", "levels")}
    return found | {
        "small": model_of("screening", num_layers=1),
        "wide": model_of("state", model_dim=16),
    }


USES = {
    "apply": lambda model, p: model.apply({"params": p}, TOKENS),
    "init_cache": lambda model, p: model.init_cache(p, 1, 8),
    "generate": lambda model, p: mj.generate(model, p, [1], 4),
    "stream": lambda model, p: mj.stream(model, p, [1], 4),
    "loss": lambda model, p: mj.losses.next_token(model, p, {"tokens": TOKENS}),
    "losses": lambda model, p: mj.losses.token_losses(model, p, {"tokens": TOKENS}),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize(
    ("model", "given", "part"),
    [
        ("screening", "attention", "of this Multiscreen: embedding.log_input_scale () is missing"),
        ("screening", "small", "layers.tiles.gate must be (2, 8, 2, 4), got (1, 8, 2, 4)"),
        ("attention", "screening", "not those of this Transformer: layers.attention.key"),
        ("state", "wide", "not those of this RetNet: embedding.rows must be (11, 8), got (11, 16)"),
        ("levels", "state", "not those of this LogLinearMamba2: "),
    ],
)
def test_parameters_of_another_model(models, model, given, part, use):
    refused(lambda: USES[use](models[model][0], models[given][1]), part)


@pytest.mark.parametrize("use", [x for x in USES if x != "apply"])
def test_what_are_no_parameters(models, use):
    for kind in ("screening", "state"):
        model, params = models[kind]
        refused(lambda m=model, p=params: USES[use](m, {"params": p}), "the inner tree, variables")
        refused(lambda m=model: USES[use](m, [1, 2]), "params must be a dict of arrays, got list")
        refused(lambda m=model: USES[use](m, {}), "is missing")
    params = models["attention"][1]
    more = params | {"adapter": jnp.ones(3)}
    refused(lambda: USES[use](models["attention"][0], more), "Transformer: it has no adapter")


@pytest.mark.parametrize(
    "kind", slow_unless(("attention", "state"), ("screening", "attention", "state", "levels"))
)
def test_caches_of_another_model(models, kind):
    model, params = models[kind]

    def with_cache(cache):
        return lambda: jax.eval_shape(lambda: model.apply({"params": params}, TOKENS, None, cache))

    caches = {name: m.init_cache(p, 1, 8) for name, (m, p) in models.items()}
    for name in caches.keys() - {kind, "wide"}:  # whose caches are those of "state"
        refused(with_cache(caches[name]), "cache")
    for wrong in (3, "text", {}, [caches[kind]], (caches[kind], caches[kind])):
        refused(with_cache(wrong), "cache must be")
    assert with_cache(caches[kind])().cache is not None
    saved = jax.tree.map(np.asarray, caches[kind])
    assert model.apply({"params": params}, TOKENS, None, saved).cache is not None
    cursor = caches[kind].cursor
    for length in (None, 3, np.int32(3)):
        refused(
            with_cache(caches[kind].replace(cursor=cursor.replace(length=length))), "cursor.length"
        )


def test_caches_of_another_size(models):
    model, params = models["screening"]
    cache = model.init_cache(params, 1, 8)
    for keys in (None, jnp.zeros(3)):
        (rings,) = cache.parts["layers"]
        wrong = cache.replace(parts={"layers": (rings.replace(keys=keys),)})
        refused(
            lambda c=wrong: model.apply({"params": params}, TOKENS, cache=c),
            "keys of the cache must be",
        )
    small = models["small"][0].init_cache(models["small"][1], 1, 8)
    refused(
        lambda: model.apply({"params": params}, TOKENS, cache=small),
        "offset of the cache must be (2, 2), got (1, 2): a cache belongs to the model whose",
    )


# -- losses, shipped models, tokenizers and runs ---------------------------------------------------


def test_what_is_no_model(models):
    model, params = models["screening"]
    for wrong in (None, params, "gdn-tiny"):
        refused(lambda m=wrong: mj.generate(m, params, [1], 2), "model must be a language model")
        refused(
            lambda m=wrong: mj.losses.next_token(m, params, {"tokens": TOKENS}),
            "model must be a language model",
        )
    refused(lambda: mj.generate(model, params, [[[1], [1, 2]]], 2), "must be token ids, or a batch")
    made = model.apply({}, TOKENS, mutable=["params"], rngs={"params": jax.random.key(0)})[1]
    assert made["params"].keys() == params.keys()


@pytest.mark.slow
def test_targets_that_are_no_tokens(models):
    model, params = models["screening"]
    targets = jnp.array([[1, 99]])
    batch = {"tokens": TOKENS, "targets": targets}
    refused(
        lambda: mj.losses.next_token(model, params, batch),
        "targets that count must be in [0, 11), got 99 at [0, 1]",
    )
    masked = {**batch, "loss_mask": jnp.array([[1.0, 0.0]])}
    assert np.isfinite(mj.losses.next_token(model, params, masked))
    assert np.isnan(jax.jit(lambda p, b: mj.losses.next_token(model, p, b))(params, batch))


MASKS = [
    ([[1.0, -1.0]], "must be finite and >= 0, got -1.0 at [0, 1]"),
    ([[np.nan, 1.0]], "must be finite and >= 0, got nan at [0, 0]"),
    ([[1.0, np.inf]], "must be finite and >= 0, got inf at [0, 1]"),
    ([[1.0, 1e300]], "must be finite and >= 0, got inf at [0, 1]"),
]


@pytest.mark.parametrize(("mask", "part"), MASKS)
def test_masks(models, mask, part):
    model, params = models["attention"]
    weights = jax.jit(
        lambda m: mj.losses.targets_and_weights({"tokens": TOKENS, "loss_mask": m})[1]
    )
    array = np.float32(mask)
    refused(
        lambda: mj.losses.next_token(model, params, {"tokens": TOKENS, "loss_mask": array}), part
    )
    assert np.isnan(weights(array)).any()  # inside jit, where it cannot be seen
    for good in (np.float32([[0, 0]]), np.array([[True, False]]), np.int32([[0, 2]])):
        np.testing.assert_array_equal(weights(good), np.float32(good))


def test_what_is_no_mask(models):
    model, params = models["attention"]
    for name, value, part in (
        ("loss_mask", [[1.0, 1.0]], "batch['loss_mask'] must be an array (1, 2), got list"),
        ("loss_mask", np.ones((1, 3)), "one shorter than the tokens, (1, 2), got float64 (1, 3)"),
        ("loss_mask", np.array([["a", "b"]]), "batch['loss_mask'] must be integer or floating"),
        ("targets", [[1, 2]], "batch['targets'] must be an array (1, 2), got list"),
        ("targets", np.ones((1, 2)), "batch['targets'] must be integer, one shorter"),
    ):
        batch = {"tokens": TOKENS, name: value}
        refused(lambda b=batch: mj.losses.next_token(model, params, b), part)


@pytest.mark.parametrize(
    ("function", "part"),
    [
        (lambda: mj.pretrained.load(None), "no trained model None; known: multiscreen-speeches"),
        (lambda: mj.pretrained.load(["a"]), "no trained model ['a']"),
        (lambda: mj.pretrained.load("../multiscreen-speeches"), "did you mean 'multiscreen-speech"),
        (lambda: mj.pretrained.load("multiscreen-speeches", foo=1), "unknown field of multiscreen"),
        (
            lambda: mj.pretrained.load("multiscreen-speeches", num_layer=1),
            "unknown field of multiscreen-speeches 'num_layer'; did you mean num_layers",
        ),
        (lambda: mj.pretrained.load("multiscreen-speeches", dtype="int8"), "dtype must be one of"),
        (
            lambda: mj.pretrained.load("multiscreen-speeches", key_dim=3),
            "key_dim=3 needs other parameters than those of multiscreen-speeches: params are not",
        ),
        (lambda: load_params(None), "the run is None; allowed: the path of a file or folder"),
        (lambda: load_params(3), "the run is 3; allowed: the path of a file or folder"),
        (lambda: find_checkpoint(b"x"), "the run is b'x'; allowed: the path of a file or folder"),
        (lambda: open_tokenizer(None), "tokenizer must be bytes, characters, gpt2 or a path"),
        (lambda: open_tokenizer(5), "got 5"),
        (lambda: open_tokenizer("characters"), "characters tokenizer needs its alphabet"),
    ],
)
def test_shipped_models_runs_and_tokenizers(function, part):
    refused(function, part)
