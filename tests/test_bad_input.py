"""Bad input, one table: each case gives one clear line, raised by us and not from inside jax."""

import dataclasses
import inspect
import json
import traceback
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import multiscreen_jax as mj
from multiscreen_jax.data import DataConfig, open_pipeline
from multiscreen_jax.models import MultiscreenConfig, TransformerConfig
from multiscreen_jax.train import MeshConfig, OptimConfig, TrainConfig, load_params
from multiscreen_jax.train.command_line import parse
from pallas_kernels import screening
from pallas_kernels.common.dispatch import check_implementation

SHAPE = dict(vocab_size=11, model_dim=8, num_layers=1, num_heads=2, key_dim=4, value_dim=4)
CONFIG = MultiscreenConfig(**SHAPE)
MODEL = mj.models.Multiscreen(CONFIG)


@pytest.fixture(scope="module")
def params():
    return jax.jit(MODEL.init)(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]


def multiscreen(**fields):
    return MultiscreenConfig(**{**SHAPE, **fields})


def transformer(**fields):
    shape = {"vocab_size": 11, "model_dim": 8, "num_layers": 1, "num_heads": 2}
    return TransformerConfig(**{**shape, **fields})


def train(*arguments):
    return parse("experiments.configs", "train", arguments)


def small_file(folder: Path, name: str, content: str | bytes) -> str:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def text_data(folder, content, name="corpus.txt", **fields):
    source = small_file(folder, name, content)
    return open_pipeline(DataConfig(source=source, sequence_length=16, **fields), "train")


def token_data(folder, **facts):
    small_file(folder, "t.json", json.dumps({"dtype": "uint16", **facts}))
    return open_pipeline(DataConfig(source=small_file(folder, "t.bin", bytes(64))), "train")


def op(**changes):
    x = jnp.ones((1, 3, 2, 4))
    arrays = {"q": x, "k": x, "v": x, "window": jnp.ones(2) * 2, "width": jnp.ones(2) / 2}
    # Without the type checks that tests add around it: users do not have them.
    return inspect.unwrap(screening)(**{**arrays, **changes})


def paper_weights(params, **changes):
    weights = mj.convert.to_torch("multiscreen/paper", params, CONFIG) | changes
    kept = {k: v for k, v in weights.items() if v is not None}
    return mj.convert.from_torch("multiscreen/paper", kept, CONFIG)


SEGMENTS = [
    ("shape", jnp.ones((1, 3), int), "integers of the shape of tokens, (1, 2), got int32 (1, 3)"),
    ("floats", jnp.ones((1, 2)), "integers of the shape of tokens, (1, 2), got float32"),
    ("list", [[1, 1]], "must be an array of integers (1, 2), got a list"),
    ("negative", np.int32([[1, -1]]), "segment_ids must be >= 0 (0 is padding), got -1"),
]


def segmented(where, p, ids):
    tokens = jnp.array([[1, 2]])
    if where == "loss":
        return mj.losses.next_token(MODEL, p, {"tokens": tokens, "segment_ids": ids})
    model = MODEL if where == "multiscreen" else mj.models.Transformer(transformer())
    if where == "transformer":
        p = jax.jit(model.init)(jax.random.key(0), tokens)["params"]
    model.apply({"params": p}, tokens, ids, model.init_cache(p, 1, 8))


# (what is wrong, call(params, tmp_path), a part of the message)
CASES = [
    ("no rows", lambda p, d: MODEL.apply({"params": p}, jnp.zeros((0, 4), int)), "got (0, 4)"),
    (
        "a document in two parts",
        lambda p, d: MODEL.apply({"params": p}, jnp.ones((1, 5), int), np.int32([[4, 2, 2, 4, 4]])),
        "4 comes back in row 0 after another one",
    ),
    ("vocab_size", lambda p, d: multiscreen(vocab_size=0), "vocab_size must be an integer >= 1"),
    ("num_heads", lambda p, d: multiscreen(num_heads=2.5), "num_heads must be an integer"),
    ("key_dim", lambda p, d: multiscreen(key_dim=1), "key_dim must be an integer >= 2, got 1"),
    ("threshold", lambda p, d: multiscreen(window_threshold=-3.0), "window_threshold"),
    ("position_rule", lambda p, d: multiscreen(position_rule="rotary"), "absolute, wrap"),
    ("wrap_length", lambda p, d: multiscreen(position_rule="wrap"), "wrap_length must be given"),
    ("inference rule", lambda p, d: multiscreen(infinite_windows=True), "needs trained_length"),
    ("dtype", lambda p, d: multiscreen(dtype="int8"), "float32, bfloat16"),
    ("precision", lambda p, d: multiscreen(precision="exact"), "precision must be one of"),
    ("remat", lambda p, d: multiscreen(remat="some"), "remat must be one of"),
    ("implementation", lambda p, d: multiscreen(implementation="cuda"), "pallas_tpu"),
    ("no dtype", lambda p, d: multiscreen(dtype=None), "dtype must be one of float32, bfloat16"),
    ("no param_dtype", lambda p, d: transformer(param_dtype=None), "param_dtype must be one of"),
    ("no names", lambda p, d: multiscreen(implementation=()), "among ('reference',"),
    ("number of names", lambda p, d: inspect.unwrap(check_implementation)(5), "got 5"),
    ("remat list", lambda p, d: multiscreen(remat=[]), "remat must be one of"),
    ("unroll", lambda p, d: multiscreen(unroll_layers="no"), "unroll_layers must be True or False"),
    ("tied", lambda p, d: transformer(tie_embeddings=1), "tie_embeddings must be True or False"),
    ("psi", lambda p, d: MultiscreenConfig.from_psi(0), "psi must be an integer >= 1"),
    ("preset", lambda p, d: MultiscreenConfig.preset("287m"), "286m"),
    ("preset name", lambda p, d: mj.models.create("multiscren-28m"), "multiscreen-28m"),
    ("preset field", lambda p, d: mj.models.create("multiscreen-28m", layers=3), "num_layers"),
    ("head split", lambda p, d: transformer(num_heads=3), "model_dim must be a multiple"),
    ("kv heads", lambda p, d: transformer(num_kv_heads=3), "multiple of num_kv_heads"),
    ("rope", lambda p, d: transformer(rope_factor=0.0), "rope_factor must be a finite number"),
    (
        "token id",
        lambda p, d: MODEL.apply({"params": p}, jnp.array([[1, 11]])),
        "token ids must be in [0, 11), got 11 at [0, 1]",
    ),
    (
        "negative token",
        lambda p, d: MODEL.apply({"params": p}, jnp.array([[-1, 1]])),
        "got -1 at [0, 0]",
    ),
    ("float tokens", lambda p, d: MODEL.apply({"params": p}, jnp.ones((1, 2))), "integers [B,T]"),
    ("one axis", lambda p, d: MODEL.apply({"params": p}, jnp.array([1, 2])), "integers [B,T]"),
    ("no tokens", lambda p, d: MODEL.apply({"params": p}, jnp.zeros((1, 0), int)), "at least one"),
    ("cache size", lambda p, d: MODEL.init_cache(p, 1, 0), "max_length"),
    (
        "cache in jit",
        lambda p, d: jax.jit(lambda q: MODEL.init_cache(q, 1, 8))(p),
        "concrete parameters: call it outside jit",
    ),
    ("cache length", lambda p, d: MODEL.init_cache(p, 1, 64.5), "integer >= 1, got 64.5"),
    ("cache batch", lambda p, d: MODEL.init_cache(p, True, 8), "integer >= 1, got True"),
    ("cache dtype", lambda p, d: MODEL.init_cache(p, 1, 8, "int8"), "the cache's dtype must be"),
    ("cache name", lambda p, d: MODEL.init_cache(p, 1, 8, "float33"), "float32, bfloat16"),
    *(
        (
            f"{where} segments {name}",
            lambda p, d, where=where, ids=ids: segmented(where, p, ids),
            part,
        )
        for where in ("multiscreen", "transformer", "loss")
        for name, ids, part in SEGMENTS
    ),
    ("batch", lambda p, d: mj.losses.next_token(MODEL, p, {"ids": 3}), "needs tokens [B, T+1]"),
    ("token list", lambda p, d: MODEL.apply({"params": p}, [[1, 2]]), "array of integers [B,T]"),
    ("op shapes", lambda p, d: op(k=jnp.ones((1, 2, 2, 4))), "of the same B, H and K, with 1 <= T"),
    ("op dtype", lambda p, d: op(v=jnp.ones((1, 3, 2, 4), int)), "v must be of a floating dtype"),
    ("op window", lambda p, d: op(window=jnp.ones(3)), "window must be [H] = (2,), got (3,)"),
    (
        "op length",
        lambda p, d: op(**{x: jnp.ones((1, 0, 2, 4)) for x in "qkv"}),
        "with 1 <= T <= S",
    ),
    ("op kernel", lambda p, d: op(implementation="pallas_gpu"), "no usable implementation"),
    ("op segments", lambda p, d: op(segment_ids=jnp.ones((1, 3))), "must be integers"),
    (
        "op gap segments",
        lambda p, d: op(segment_ids=jnp.ones((1, 3), int), gap=0),
        "segment_ids must be [B,S+T] = (1, 6), got (1, 3)",
    ),
    ("op gap sign", lambda p, d: op(gap=-1), "gap must be >= 0, got -1"),
    ("op gap dtype", lambda p, d: op(gap=1.5), "gap must be an integer, got float32[]"),
    ("op gap shape", lambda p, d: op(gap=jnp.ones(2, int)), "must be an integer, got int32[2]"),
    (
        "cache rows",
        lambda p, d: MODEL.apply(
            {"params": p}, jnp.ones((3, 1), int), cache=MODEL.init_cache(p, 2, 8)
        ),
        "the cache's 2 rows, got 3",
    ),
    (
        "target id",
        lambda p, d: mj.losses.next_token(MODEL, p, {"tokens": jnp.array([[1, 99]])}),
        "got 99 at [0, 1]",
    ),
    ("empty prompt", lambda p, d: mj.generate(MODEL, p, []), "prompt"),
    ("prompt id", lambda p, d: mj.generate(MODEL, p, [3, 99]), "99"),
    ("temperature", lambda p, d: mj.generate(MODEL, p, [3], temperature=-1.0), "temperature"),
    ("warm", lambda p, d: mj.generate(MODEL, p, [3], temperature="warm"), "temperature must be"),
    ("top_p text", lambda p, d: mj.generate(MODEL, p, [3], top_p="0.9"), "top_p must be"),
    (
        "key",
        lambda p, d: mj.generate(MODEL, p, [3], temperature=1.0, key=3),
        "jax.random.key(seed)",
    ),
    ("stop", lambda p, d: mj.generate(MODEL, p, [3], stop_tokens=[11]), "must be in [0, 11)"),
    ("wrapped", lambda p, d: mj.generate(MODEL, {"params": p}, [3]), "the parameters themselves"),
    ("no key", lambda p, d: mj.generate(MODEL, p, [3], temperature=1.0), "key"),
    (
        "top_p",
        lambda p, d: mj.generate(MODEL, p, [3], temperature=1.0, key=jax.random.key(0), top_p=2.0),
        "top_p",
    ),
    ("too long", lambda p, d: mj.generate(MODEL, p, [3] * 9, 9, max_length=12), "max_length"),
    ("missing tensor", lambda p, d: paper_weights(p, W_E=None), "W_E"),
    ("extra tensor", lambda p, d: paper_weights(p, extra=np.ones(3)), "extra"),
    ("tensor shape", lambda p, d: paper_weights(p, W_E=np.ones((3, 8))), "W_E"),
    ("source", lambda p, d: mj.convert.from_torch("multiscreen/papper", {}, CONFIG), "paper"),
    (
        "no safetensors",
        lambda p, d: mj.convert.load_safetensors(small_file(d, "w.safetensors", b"not one")),
        "w.safetensors",
    ),
    ("empty corpus", lambda p, d: text_data(d, ""), "empty"),
    ("short corpus", lambda p, d: text_data(d, "short"), "sequence"),
    ("no such file", lambda p, d: open_pipeline(DataConfig(source="no.txt"), "train"), "no.txt"),
    ("tokenizer", lambda p, d: text_data(d, "x" * 99, tokenizer="gpt3"), "gpt2"),
    ("bad line", lambda p, d: text_data(d, '{"text": 3', "c.jsonl"), "c.jsonl"),
    (
        "long number",
        lambda p, d: text_data(d, '{"text": ' + "1" * 5000 + "}", "c.jsonl"),
        "c.jsonl:1",
    ),
    ("nesting", lambda p, d: text_data(d, "[" * 200_000, "c.jsonl"), "c.jsonl:1: JSON that cannot"),
    (
        "sidecar alphabet",
        lambda p, d: token_data(d, tokenizer="characters", vocab_size=38, alphabet=5),
        "t.json: alphabet is 5; allowed: a string",
    ),
    (
        "sidecar size",
        lambda p, d: token_data(d, tokenizer="bytes", vocab_size=True),
        "t.json: vocab_size is True; allowed: an integer",
    ),
    ("split", lambda p, d: open_pipeline(DataConfig(source="sotu"), "test"), "test"),
    ("packing", lambda p, d: DataConfig(source="sotu", packing="dense"), "stream"),
    ("learning rate", lambda p, d: OptimConfig(learning_rate=-1.0), "optim.learning-rate"),
    ("optimizer", lambda p, d: OptimConfig(name="sgd"), "adamw"),
    ("mesh", lambda p, d: MeshConfig(data=0), "mesh.data"),
    ("steps", lambda p, d: TrainConfig(steps=0), "train.steps"),
    ("config name", lambda p, d: train("quikstart"), "did you mean quickstart"),
    ("command field", lambda p, d: train("quickstart", "--optim.b1", "7"), "optim.b1"),
    ("no run", lambda p, d: load_params(d / "nothing"), "nothing"),
]


@pytest.mark.parametrize(("call", "part"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_one_clear_line(call, part, params, tmp_path):
    with pytest.raises((ValueError, TypeError, FileNotFoundError, NotImplementedError)) as raised:
        call(params, tmp_path)
    message = str(raised.value)
    assert part in message
    assert "\n" not in message
    last = traceback.extract_tb(raised.value.__traceback__)[-1].filename
    assert any(f"/{ours}/" in last for ours in ("multiscreen_jax", "pallas_kernels")), last


def test_the_table_is_long_enough():
    assert len(CASES) >= 30


def test_ids_that_jit_hides_turn_to_nan(params):
    logits = jax.jit(lambda p, t: MODEL.apply({"params": p}, t).logits)(
        params, jnp.array([[1, 11, 2], [1, 2, -1], [1, 2, 3]])
    )
    assert np.isnan(logits[0, 1]).all()
    assert np.isnan(logits[1, 2]).all()
    assert not np.isnan(logits[2]).any()


def test_targets_that_jit_hides_turn_to_nan(params):
    loss = jax.jit(lambda p, b: mj.losses.next_token(MODEL, p, b))
    tokens = jnp.array([[1, 2, 99]])
    assert np.isnan(loss(params, {"tokens": tokens}))
    assert np.isfinite(loss(params, {"tokens": tokens, "loss_mask": jnp.array([[1.0, 0.0]])}))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.uint8, pytest.param(np.int8, marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("make", [pytest.param(multiscreen, marks=pytest.mark.slow), transformer])
def test_narrow_tokens_are_the_same_tokens(make, dtype):
    model = mj.models.build(make(vocab_size=300))
    tokens = np.int32([[1, 2, 127, 44, 0]])
    params = jax.jit(model.init)(jax.random.key(0), tokens)["params"]
    step = jax.value_and_grad(lambda p, t: mj.losses.next_token(model, p, {"tokens": t}))
    wanted, got = (jax.jit(step)(params, t) for t in (tokens, tokens.astype(dtype)))
    chex.assert_trees_all_close(got, wanted, rtol=1e-4, atol=1e-6)
    forward = jax.jit(lambda t: model.apply({"params": params}, t).logits)
    logits = [forward(t) for t in (tokens, tokens.astype(dtype))]
    np.testing.assert_array_equal(*logits)


def test_the_op_takes_numpy_arrays():
    arrays = {x: np.full((1, 3, 2, 4), 0.5, np.float32) for x in "qkv"}
    h = op(**arrays, window=np.float32([2, np.inf]), width=np.float32([0.5, 0.5]))
    np.testing.assert_allclose(h[0, :, 1, 0], [0.5, 1.0, 1.5], rtol=1e-6)


def test_nan_parameters_are_named(params):
    broken = jax.tree.map(lambda x: x * jnp.nan, params)
    with pytest.raises(FloatingPointError, match="finite"):
        mj.generate(MODEL, broken, [3], 4)


def test_a_config_with_a_list_of_implementations_is_hashable():
    assert hash(multiscreen(implementation=["chunked", "reference"]))


def test_a_config_of_numpy_numbers_is_that_of_pythons():
    fields = dict(num_layers=np.int64(1), window_threshold=np.float32(64), unroll_layers=np.True_)
    config = multiscreen(**fields)
    assert config == multiscreen(num_layers=1, window_threshold=64.0, unroll_layers=True)
    assert json.dumps(dataclasses.asdict(config))


def test_config_of_a_run_round_trips_as_json():
    config = train("tiny")
    from multiscreen_jax.train import config_json

    again = config_json.from_dict(json.loads(json.dumps(config_json.to_dict(config))))
    assert again == config
