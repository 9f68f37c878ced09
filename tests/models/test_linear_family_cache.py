"""The cache contract for the linear family and hybrids: windows, states, levels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import multiscreen_jax as mj
from multiscreen_jax.models import build
from tests.marks import slow_unless
from tests.models.linear_family import CONFIGS, NAMES, params_of
from tests.suites import cache_suite

TOKENS = jax.random.randint(jax.random.key(1), (2, 23), 0, 61)
LONG = jax.random.randint(jax.random.key(3), (1, 70), 0, 61)
FEW = ("mamba2", "gdn+attention")
# Which `suites/test_architectures.py` has alone, on shorter rows.
HELD_BY_OTHERS = [name for name in NAMES if "+" not in name]
models = pytest.mark.parametrize("name", slow_unless((), NAMES, exhaustive=HELD_BY_OTHERS))
# What is the cursor's or the loop's, whatever the mixers.
few_models = pytest.mark.parametrize("name", slow_unless(FEW[1:], NAMES, exhaustive=NAMES))


def _model(name):
    return build(CONFIGS[name]), params_of(name)


@models
def test_every_split_of_seventy_tokens(name):
    # What screening accepts with little relevance enlarges rounding errors.
    tolerance = 2e-4 if "screening" in name else 5e-5
    cache_suite.check_every_split_in_one_batch(*_model(name), LONG, tolerance)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["log-linear-mamba2", "log-linear-gdn+screening"])
def test_every_split_of_a_short_row(name):
    cache_suite.check_every_split(*_model(name), TOKENS[:, :9], tolerance=5e-5)


@pytest.mark.slow
@few_models
def test_documents_cut_by_chunks(name):
    """They begin with a chunk of one token, with a longer one, and inside one."""
    segment_ids = jnp.asarray(
        [[1] * 8 + [2] * 1 + [3] * 11 + [0] * 3, [1] * 7 + [2] * 13 + [3] * 3]
    )
    cache_suite.check_uneven_chunks(
        *_model(name), TOKENS, (7, 1, 7, 1, 7), segment_ids, tolerance=5e-5
    )


@pytest.mark.slow
@few_models
def test_ragged_batch(name):
    cache_suite.check_ragged_batch(*_model(name), TOKENS, (11, 4), tolerance=5e-5)


@pytest.mark.slow
@few_models
def test_overflow_is_loud(name):
    model, params = _model(name)
    cache_suite.check_overflow_is_loud(model, params, TOKENS[:, :6])


@pytest.mark.slow
@few_models
def test_greedy_generation_is_the_argmax_of_full_forwards(name):
    model, params = _model(name)
    prompts = [[5, 9, 2, 7, 30, 1, 1, 12], [3]]
    got = mj.generate(model, params, prompts, max_new_tokens=5)
    for row, prompt in zip(got, prompts, strict=True):
        whole = prompt + row.tolist()
        tokens = jnp.asarray([whole + [0] * (13 - len(whole))])
        logits = cache_suite.forward(model, params, tokens)[0]
        want = np.argmax(logits[len(prompt) - 1 : len(whole) - 1], axis=-1)
        np.testing.assert_array_equal(row, want)


@pytest.mark.slow
def test_decode_after_a_prefill_of_eight_tokens():
    """Where the authors' own cache goes wrong: it forgets how full the levels are, so that the
    last prefill token is overwritten (relative errors of 1.0, 0.5, 1.1, 0.4 in the next steps)."""
    model, params = _model("log-linear-mamba2")
    cache_suite.check_uneven_chunks(model, params, TOKENS[:, :12], (8, 1, 1, 1, 1))


@pytest.mark.slow
def test_sizes_and_dtypes():
    model, params = _model("log-linear-mamba2")
    cache = model.init_cache(params, 3, 100, dtype="bfloat16")
    (layers,) = cache.parts["layers"]
    assert layers["value_conv"].shape == (2, 3, 3, 4, 5)
    assert layers["query_conv"].shape == (2, 3, 3, 2, 6)
    assert layers["key_conv"].dtype == jnp.bfloat16
    assert layers["state"].levels.shape == (2, 3, 4, 9, 6, 5)
    assert layers["state"].levels.dtype == jnp.float32
    assert layers["state"].length.shape == (2, 3)
    hybrid, params = _model("log-linear-gdn+screening")
    recurrent, rings = hybrid.init_cache(params, 3, 100).parts["layers"]
    assert recurrent["state"].length.shape == (2, 3)
    assert rings.offset.shape == (2, 2)
    with pytest.raises(ValueError, match="max_length of a cache must be an integer >= 1, got 0"):
        model.init_cache(None, 2, 0)
    with pytest.raises(ValueError, match="tokens must have the cache's 3 rows, got 2"):
        model.apply({"params": params_of("log-linear-mamba2")}, TOKENS, cache=cache)
