"""Every architecture in the list gets every check that applies; see `Contract.excused`."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from multiscreen_jax import convert, losses
from multiscreen_jax.layers.parameters import facts_of
from multiscreen_jax.sharding import make_mesh, path_name
from multiscreen_jax.train import config_json
from multiscreen_jax.train.config import OptimConfig
from multiscreen_jax.train.optimizer import make_optimizer
from multiscreen_jax.train.state import abstract_params, create_state
from multiscreen_jax.train.step import make_train_step
from tests.convert.trees import assert_same
from tests.marks import slow_unless
from tests.suites import cache_suite
from tests.suites.contract import (
    ALL,
    DOCUMENTS,
    LENGTH,
    TOKENS,
    config_of,
    logits,
    loss_and_gradients,
    model_of,
    params_of,
)

# In the default suite one that has no other tests; in .ci/run all.
FEW = ("resformer",)
KINDS = ("multiscreen", "log-linear-gdn", "resformer", "mamba2")  # of memory
# Made of layers that others have alone; the largest to compile.
MIXED = ("hybrid",)
IN_HYBRID = ("retnet", "gdn", "mamba2", "transformer", "multiscreen")
every = pytest.mark.parametrize("name", ALL)
costly = pytest.mark.parametrize("name", slow_unless(FEW, ALL))
CHECKS = {
    "gradients", "causality", "documents", "remat", "caches", "json", "steps", "conversion",
    "lowering", "counts",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _unless_excused(request):
    name = request.node.callspec.params.get("name") if hasattr(request.node, "callspec") else None
    check = request.node.function.__name__.removeprefix("test_").split("_")[0]
    if name in ALL and check in ALL[name].contract.excused:
        pytest.skip(ALL[name].contract.excused[check])


def test_nobody_is_excused_from_what_is_not_there():
    """The table of all exceptions: who, from what, and why. It is empty."""
    excused = {name: dict(each.contract.excused) for name, each in ALL.items()}
    assert all(set(reasons) <= CHECKS for reasons in excused.values())
    assert {name: reasons for name, reasons in excused.items() if reasons} == {}


@costly
def test_gradients_are_finite_and_none_is_zero(name):
    loss, gradients = loss_and_gradients(name)
    assert np.isfinite(loss)
    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.isfinite(gradient).all(), path_name(path)
        assert np.abs(gradient).max() > 0, path_name(path)


@costly
@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_causality_to_the_bit(name, dtype):
    """What comes later changes no bit of what came before."""
    whole = logits(name, dtype=dtype)
    for place in (5, 17):
        later = TOKENS.copy()
        later[:, place] = (later[:, place] + 1) % 61
        changed = logits(name, later, dtype=dtype)
        np.testing.assert_array_equal(whole[:, :place], changed[:, :place])
        assert (whole[:, place:] != changed[:, place:]).any()


@costly
def test_documents_are_alone_and_isolated(name):
    tolerance = ALL[name].contract.tolerance
    packed = logits(name, segment_ids=DOCUMENTS)
    for row, number in ((0, 1), (0, 2), (1, 2), (1, 3)):
        (places,) = np.nonzero(DOCUMENTS[row] == number)
        alone = np.roll(TOKENS[row : row + 1], -places[0], axis=1)  # what follows is not seen
        alone = logits(name, np.repeat(alone, 2, axis=0))[0, : len(places)]
        cache_suite.assert_close(packed[row, places], alone, tolerance, f"document {number}")
    again = np.where(DOCUMENTS == 2, 0, np.where(DOCUMENTS == 3, 1, DOCUMENTS))
    other = np.where(DOCUMENTS == 2, 0, DOCUMENTS)
    # Where nobody can see that an id comes back, it is another document for all parts of a model.
    same = logits(name, segment_ids=again), logits(name, segment_ids=other)
    np.testing.assert_array_equal(*same)
    second = DOCUMENTS == 2
    changed = logits(name, np.where(second, (TOKENS + 1) % 61, TOKENS), DOCUMENTS)
    np.testing.assert_array_equal(packed[~second], changed[~second])


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_remat_and_a_loop_over_layers_change_nothing(name):
    _, want = loss_and_gradients(name)
    _, got = loss_and_gradients(name, remat="full", unroll_layers=True)
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(want), strict=True
    ):
        assert np.linalg.norm(a - b) <= 2e-4 * np.linalg.norm(b) + 1e-7, path_name(path)


@costly
def test_caches_give_what_whole_rows_give(name):
    """Prefill of every length and single tokens after it, rows of uneven length, overflow."""
    model, params, tolerance = model_of(name), params_of(name), ALL[name].contract.tolerance
    cache_suite.check_every_split_in_one_batch(model, params, jnp.asarray(TOKENS[:1]), tolerance)


@pytest.mark.parametrize("name", slow_unless((), ALL, exhaustive=ALL.keys() - {*KINDS}))
def test_caches_of_ragged_and_packed_rows(name):
    """What is the cursor's, whatever the mixers."""
    model, params, tolerance = model_of(name), params_of(name), ALL[name].contract.tolerance
    tokens = jnp.asarray(TOKENS)
    cache_suite.check_ragged_batch(model, params, tokens, (11, 4), tolerance=tolerance)
    cache_suite.check_uneven_chunks(
        model, params, tokens, (7, 1, 7, 1, 7), jnp.asarray(DOCUMENTS), tolerance=tolerance
    )
    cache_suite.check_overflow_is_loud(model, params, tokens[:, :6])


@every
def test_json_keeps_the_config(name):
    config = config_of(name)
    plain = json.loads(json.dumps(config_json.model_to_dict(config)))
    assert config_json.model_from_dict(plain) == config
    assert hash(config_json.model_from_dict(plain)) == hash(config)


@every
def test_counts_and_facts(name):
    """Parameters are counted of their shapes, and each says its axes, decay and rule."""
    config, params = config_of(name), abstract_params(model_of(name))
    assert config.parameter_count() == sum(leaf.size for leaf in jax.tree.leaves(params))
    assert config.forward_flops(2 * LENGTH) > config.forward_flops(LENGTH) > 0
    facts = jax.tree.leaves(facts_of(model_of(name)))
    for leaf, its in zip(jax.tree.leaves(params), facts, strict=True):
        assert len(its.axes) == leaf.ndim


@every
def test_conversion_there_and_back(name):
    config, params = config_of(name), params_of(name)
    for source in (*(source.name for source in ALL[name].sources), "native"):
        if source.endswith("/hf-llama") or "final_norm" in params:
            named = convert.to_torch(source, params, config)
            assert_same(convert.from_torch(source, named, config), params)


@pytest.mark.parametrize("name", slow_unless((), ALL, exhaustive=MIXED))
def test_steps_of_training_lower_the_loss(name):
    """In bfloat16, with parameters in float32."""
    model = model_of(name, dtype="bfloat16")
    config = OptimConfig(learning_rate=3e-3, warmup_steps=0, weight_decay=0.1)
    optimizer = make_optimizer(config, 10, facts_of(model))
    step = jax.jit(make_train_step(model, optimizer, optax.constant_schedule(3e-3)))
    state = create_state(model, optimizer, make_mesh(data=1, devices=jax.devices()[:1]), seed=0)
    batch = {"tokens": jnp.asarray(TOKENS), "segment_ids": jnp.asarray(DOCUMENTS)}
    found = []
    for _ in range(3):
        state, metrics = step(state, batch)
        assert metrics["finite"]
        found.append(float(metrics["loss"]))
    assert found[2] < found[0]


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
@pytest.mark.parametrize("name", slow_unless((), ALL, exhaustive=IN_HYBRID))
def test_lowering_of_the_gradient(name, platform):
    """For the accelerators, kernels and all, without one."""
    model, params = model_of(name, dtype="bfloat16"), params_of(name)
    batch = {"tokens": jnp.asarray(np.tile(TOKENS, (1, 7))[:, :129])}

    def loss(params):
        return losses.next_token(model, params, batch)

    traced = jax.jit(jax.grad(loss)).trace(params)
    assert traced.lower(lowering_platforms=(platform,)).as_text()
