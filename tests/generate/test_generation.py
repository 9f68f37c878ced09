"""generate and stream: greedy is the argmax of full forwards, rows are independent, errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import multiscreen_jax as mj
from multiscreen_jax import generation
from multiscreen_jax.models.multiscreen import Multiscreen, MultiscreenConfig
from multiscreen_jax.models.transformer import Transformer, TransformerConfig
from tests.marks import slow_unless

VOCABULARY = 41
PROMPTS = [[5, 9, 2, 7, 30, 1, 1, 12], [3], [8, 4, 40, 0]]


@functools.cache
def _model(name):
    shape = {"vocab_size": VOCABULARY, "model_dim": 16, "num_layers": 2, "num_heads": 2}
    model = {
        "transformer": lambda: Transformer(TransformerConfig(**shape)),
        "multiscreen": lambda: Multiscreen(MultiscreenConfig(**shape, window_threshold=8.0)),
    }[name]()
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]
    # At the initial weights both repeat one token: layers must weigh more, and tiles accept more.
    if name == "transformer":
        return model, jax.tree.map(lambda x: 8 * x, params)
    tiles = params["layers"]["tiles"]
    louder = {"gate": 20 * tiles["gate"], "output": 2000 * tiles["output"]}
    louder = {**tiles, **louder, "logit_width": tiles["logit_width"] + 3}
    return model, {**params, "layers": {"tiles": louder}}


@functools.partial(jax.jit, static_argnums=0)
def _logits(model, params, tokens):
    return model.apply({"params": params}, tokens).logits


def _greedy_by_full_forwards(model, params, prompt, steps, room=20):
    row = list(prompt)
    for _ in range(steps):
        padded = jnp.asarray([row + [0] * (room - len(row))])  # one shape; the future is not read
        row.append(int(jnp.argmax(_logits(model, params, padded)[0, len(row) - 1])))
    return row[len(prompt) :]


@pytest.mark.parametrize("name", slow_unless(("multiscreen",), ("transformer", "multiscreen")))
def test_greedy_is_the_argmax_of_full_forwards(name):
    model, params = _model(name)
    got = mj.generate(model, params, PROMPTS, max_new_tokens=9)
    assert got.shape == (3, 9)
    assert got.dtype == np.int32
    assert len(set(got.ravel())) > 3, "the case must not be constant"
    for row, prompt in zip(got, PROMPTS, strict=True):
        assert row.tolist() == _greedy_by_full_forwards(model, params, prompt, 9)


@pytest.mark.slow
def test_one_prompt_gives_one_row():
    model, params = _model("transformer")
    batch = mj.generate(model, params, PROMPTS, max_new_tokens=5)
    for prompt in (PROMPTS[2], np.asarray(PROMPTS[2]), jnp.asarray(PROMPTS[2])):
        np.testing.assert_array_equal(mj.generate(model, params, prompt, 5), batch[2])
    two = mj.generate(model, params, np.asarray([PROMPTS[2]] * 2), 5)
    np.testing.assert_array_equal(two, batch[[2, 2]])


def test_samples_depend_on_key_and_row_only():
    model, params = _model("transformer")
    key = jax.random.key(7)
    draw = functools.partial(
        mj.generate, model, params, max_new_tokens=8, temperature=1.5, top_k=20, top_p=0.95
    )
    batch = draw(PROMPTS, key=key)
    np.testing.assert_array_equal(batch, draw(PROMPTS, key=key))
    np.testing.assert_array_equal(batch, draw(PROMPTS, key=jax.random.key_data(key)))
    assert np.any(batch != draw(PROMPTS, key=jax.random.key(8)))
    np.testing.assert_array_equal(batch[0], draw(PROMPTS[0], key=key))
    own = jax.random.fold_in(key, 2)[None]
    np.testing.assert_array_equal(batch[2], draw(PROMPTS[2], key=own))
    same = draw([PROMPTS[0]] * 3, key=key)
    assert np.any(same[0] != same[1]), "equal prompts must not give equal samples"


def test_keys_are_folded_by_row_and_step():
    """Zero parameters make every token equally likely, so the draw is the key's alone."""
    model, params = _model("transformer")
    zeros = jax.tree.map(jnp.zeros_like, params)
    key = jax.random.key(4)
    got = mj.generate(model, zeros, [[1], [2]], 5, temperature=1.0, key=key)
    for row in range(2):
        for step in range(5):
            own = jax.random.fold_in(jax.random.fold_in(key, row), step)
            assert got[row, step] == jax.random.categorical(own, jnp.zeros(VOCABULARY))


def test_stop_tokens_end_rows_and_fill_them():
    model, params = _model("transformer")
    free = mj.generate(model, params, PROMPTS, max_new_tokens=12)
    stop = int(free[0, 3])
    never = min(set(range(VOCABULARY)) - set(free.ravel().tolist()))
    stopped = mj.generate(model, params, PROMPTS, max_new_tokens=12, stop_tokens=(stop, never))
    ends = []
    for row, without in zip(stopped, free, strict=True):
        (met,) = np.nonzero(without == stop)
        end = met[0] + 1 if len(met) else 12
        ends.append(end)
        np.testing.assert_array_equal(row[:end], without[:end])
        assert (row[end:] == stop).all()
    assert min(ends) < stopped.shape[1] == max(ends)
    alone = mj.generate(model, params, PROMPTS[0], max_new_tokens=12, stop_tokens=[stop])
    np.testing.assert_array_equal(alone, free[0, : ends[0]])  # ends early: every row has stopped


def test_stream_yields_what_generate_returns():
    model, params = _model("transformer")
    steps = mj.stream(model, params, PROMPTS, max_new_tokens=6)
    first = next(steps)
    assert first.shape == (3,)
    rest = np.stack([first, *steps], axis=1)
    np.testing.assert_array_equal(rest, mj.generate(model, params, PROMPTS, max_new_tokens=6))


def test_prompts_longer_than_a_chunk(monkeypatch):
    monkeypatch.setattr(generation, "PREFILL_CHUNK", 16)
    model, params = _model("transformer")
    tokens = jax.random.randint(jax.random.key(3), (39,), 0, VOCABULARY)
    prompts = [tokens, tokens[:16], tokens[:3]]
    got = mj.generate(model, params, prompts, max_new_tokens=3)
    for row, prompt in zip(got, prompts, strict=True):
        want = _greedy_by_full_forwards(model, params, prompt.tolist(), 3, room=42)
        assert row.tolist() == want


def test_same_shapes_compile_once():
    model, params = _model("transformer")
    run = functools.partial(mj.generate, model, params, temperature=0.7, key=jax.random.key(0))
    run([1, 2, 3], 4, top_p=0.9)
    programs = (generation._advance, generation._prefill_chunk, generation._choose_jit)
    before = [program._cache_size() for program in programs]
    run([4, 5, 6, 7, 8], 9, top_p=0.5)
    assert [program._cache_size() for program in programs] == before


@pytest.mark.parametrize("temperature", [0.0, 3.0])
def test_ids_from_the_vocabulary_limit_on_are_never_made(temperature):
    model, params = _model("transformer")
    run = functools.partial(
        mj.generate, model, params, PROMPTS, 9, temperature, jax.random.key(0), top_k=30
    )
    assert run().max() >= 7
    limited = run(vocab_limit=7)
    assert limited.max() < 7
    assert len(set(limited.ravel())) > 1
    np.testing.assert_array_equal(run(vocab_limit=VOCABULARY), run())


def test_nan_parameters_are_loud():
    model, params = _model("transformer")
    broken = jax.tree.map(lambda x: x * jnp.nan, params)
    with pytest.raises(FloatingPointError, match="NaN among the logits of row 0"):
        mj.generate(model, broken, [1, 2, 3], 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt_tokens": []}, "the prompt is empty"),
        ({"prompt_tokens": [[1], []]}, "prompt 1 is empty"),
        ({"prompt_tokens": np.zeros((0, 4), np.int32)}, "holds no prompt"),
        ({"prompt_tokens": [1, VOCABULARY]}, r"in \[0, 41\), got 41 at position 1 of the prompt"),
        ({"prompt_tokens": [[1], [2, -3]]}, "got -3 at position 1 of prompt 1"),
        ({"prompt_tokens": np.zeros((1, 2, 3), np.int32)}, r"got shape \(1, 2, 3\)"),
        ({"prompt_tokens": np.int32(3)}, r"got shape \(\)"),
        ({"prompt_tokens": [0.5, 1.0]}, "must be a row of integer ids, got float64"),
        ({"prompt_tokens": "text"}, "must be a row of integer ids"),
        ({"max_new_tokens": 0}, "max_new_tokens must be an integer >= 1, got 0"),
        ({"temperature": -0.1}, "temperature must be a finite number >= 0, got -0.1"),
        ({"temperature": 0.5}, "needs a key"),
        ({"top_p": 0.0}, r"top_p must be None or in \(0, 1\], got 0.0"),
        ({"top_p": 1.5}, r"top_p must be None or in \(0, 1\], got 1.5"),
        ({"top_k": 0}, "top_k must be None or an integer >= 1, got 0"),
        ({"stop_tokens": 3}, "stop_tokens must be a sequence of integer ids, got 3"),
        ({"stop_tokens": "ab"}, "stop_tokens must be a sequence of integer ids, got 'ab'"),
        ({"stop_tokens": [[1]]}, r"stop_tokens must be a sequence of integer ids, got \[\[1\]\]"),
        ({"vocab_limit": 0}, r"vocab_limit must be None or in \[1, 41\], got 0"),
        ({"vocab_limit": VOCABULARY + 1}, r"vocab_limit must be None or in \[1, 41\], got 42"),
        ({"max_new_tokens": True}, "max_new_tokens must be an integer >= 1, got True"),
        ({"max_length": "5"}, "max_length must be None or an integer, got '5'"),
        ({"prompt_tokens": None}, "prompt_tokens must be token ids, .* got NoneType"),
        ({"max_length": 10}, "3 tokens and max_new_tokens is 8: together more than max_length"),
        ({"temperature": 1.0, "key": jax.random.split(jax.random.key(0), 2)}, "one for each of 1"),
    ],
)
@pytest.mark.parametrize("function", [mj.generate, mj.stream])
def test_errors_before_anything_runs(function, arguments, message):
    model, _ = _model("transformer")
    with pytest.raises(ValueError, match=message):
        function(model, None, **{"prompt_tokens": [1, 2, 3], "max_new_tokens": 8, **arguments})
