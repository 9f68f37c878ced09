"""FLOPs counted from jaxprs: loops multiplied out, kernels, and whole models by their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, PartitionSpec

from experiments.aot.flops import count, screening_formula
from experiments.aot.program import trace_step
from experiments.aot_check import find_config
from multiscreen_jax.layers.parameters import facts_of
from multiscreen_jax.models.registry import build
from multiscreen_jax.sharding import MESH_AXES
from multiscreen_jax.train import override
from multiscreen_jax.train.optimizer import make_optimizer
from multiscreen_jax.train.state import TrainState
from multiscreen_jax.train.step import experiment_step

A, B = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((8, 16), (16, 4)))
PRODUCT = 2 * 8 * 16 * 4


def flops(function, *shapes):
    return count(jax.make_jaxpr(function)(*shapes))


def test_products_and_convolutions():
    assert flops(jnp.dot, A, B).total == PRODUCT
    batched = jax.ShapeDtypeStruct((3, 8, 16), jnp.float32)
    assert flops(lambda x, y: jnp.einsum("bij,bkj->bik", x, y), batched, batched).total == (
        2 * 3 * 8 * 8 * 16
    )
    x, kernel = (jax.ShapeDtypeStruct(s, jnp.float32) for s in ((1, 2, 10), (6, 2, 3)))
    found = flops(lambda x, k: jax.lax.conv(x, k, (1,), "VALID"), x, kernel)
    assert found.total == 2 * (6 * 8) * (2 * 3)


def test_scans_inside_jit_and_remat_run_as_often_as_they_say():
    def loss(a, b):
        body = jax.checkpoint(lambda x, _: (jnp.tanh(x @ b @ b.T), None))
        return jax.jit(lambda a: jax.lax.scan(body, a, None, length=5)[0].sum())(a)

    assert flops(loss, A, B).total == 5 * 2 * PRODUCT
    # Backward: two products for each, and the forward again.
    assert flops(jax.grad(loss, (0, 1)), A, B).total == 5 * (2 + 4 + 2) * PRODUCT


def test_the_largest_branch_counts_and_a_loop_of_run_time_length_is_listed():
    found = flops(lambda a, b: jax.lax.cond(a[0, 0] > 0, lambda: a @ b, lambda: a[:, :4]), A, B)
    assert found.total == PRODUCT
    found = flops(lambda n, a, b: jax.lax.fori_loop(0, n, lambda _, c: c @ (b @ b.T), a), 3, A, B)
    assert found.total == 0
    assert found.uncounted == {"loop of run-time length": 1}


def test_inside_shard_map_every_device_counts():
    mesh = AbstractMesh((2, 4), ("x", "y"), (AxisType.Auto,) * 2)
    split = PartitionSpec("x")
    op = jax.shard_map(
        jnp.dot, mesh=mesh, in_specs=(split, PartitionSpec()), out_specs=split, check_vma=False
    )
    # Rows are divided over x; all of y computes the same.
    assert flops(op, A, B).total == 4 * PRODUCT


def test_a_kernel_counts_its_grid_times_its_body_or_a_formula():
    def kernel(a_ref, b_ref, c_ref):
        c_ref[...] = a_ref[...] @ b_ref[...]

    def call(a, b):
        whole = pl.BlockSpec((16, 4), lambda i: (0, 0))
        rows = [pl.BlockSpec((2, width), lambda i: (i, 0)) for width in (16, 4)]
        return pl.pallas_call(
            kernel,
            jax.ShapeDtypeStruct((8, 4), jnp.float32),
            grid=4,
            in_specs=[rows[0], whole],
            out_specs=rows[1],
            name="rows",
        )(a, b)

    assert flops(call, A, B).kernels == {"rows": PRODUCT}
    jaxpr = jax.make_jaxpr(call)(A, B)
    assert count(jaxpr, lambda name, shapes: 7.0 if name == "rows" else None).total == 7


@pytest.mark.parametrize("shape", [(2, 16, 16, 4096), (2, 4096, 16, 16)])
def test_screening_kernels_cost_their_pairs_in_either_layout(shape):
    config = find_config("28m").model
    formula = screening_formula(config, 4096)
    q, window = (jax.ShapeDtypeStruct(s, jnp.float32) for s in (shape, (16,)))
    windows = np.exp(np.linspace(0, np.log(256), 16)) + 1
    pairs = 2 * sum(np.minimum(np.arange(1, 4097), np.ceil(w)).sum() for w in windows)
    assert formula("screening_forward", [window, q]) == pytest.approx(2 * (16 + 64) * pairs)
    assert formula("screening_backward_keys", [window, q]) == pytest.approx(4 * (16 + 64) * pairs)
    assert formula("screening_forward_apart", [window, q]) == 0  # among those pairs already
    assert formula("linear_forward", [window, q]) is None


def test_screening_kernels_of_a_share_cost_their_own_queries():
    """128 queries of 512 tokens, in the shapes of either kernel of keys."""
    config = find_config("28m").model
    windows = np.ceil(np.exp(np.linspace(0, np.log(256), 16)) + 1)
    reach = np.minimum(np.arange(1, 513)[:, None], windows)
    cost = 4 * (16 + 64)
    sides = {"k": (16, 512), "v": (64, 512), "q": (16, 128), "dh": (64, 128)}
    for order in (("k", "v", "q", "dh"), ("q", "k", "v", "dh")):
        pairs = [sides[name] for name in order]
        tpu = [jax.ShapeDtypeStruct((1, 16, x, length), jnp.float32) for x, length in pairs]
        gpu = [jax.ShapeDtypeStruct((1, length, 16, x), jnp.float32) for x, length in pairs]
        for shapes in (tpu, gpu):
            last, mean = (
                screening_formula(config, 512, on_last)("screening_backward_keys", shapes)
                for on_last in (True, False)
            )
            assert last == pytest.approx(cost * reach[-128:].sum())
            assert mean == pytest.approx(cost * reach.sum() / 4)


@pytest.mark.parametrize("sizes", [(2, 1), pytest.param((2, 8), marks=pytest.mark.slow)])
def test_divided_sequences_count_what_the_models_formula_says(sizes):
    """Devices that hold a share of a sequence get the keys of those before theirs."""
    length, chip = 16384, AbstractDevice("TPU v5 lite", 1, "tpu")
    mesh = AbstractMesh((1, *sizes, 1), MESH_AXES, (AxisType.Auto,) * 4, abstract_device=chip)
    model = {"dtype": "bfloat16", "model_dim": 128, "key_dim": 16, "value_dim": 32}
    config = override(
        find_config("tiny"), model=model, data={"sequence_length": length, "batch_size": 4}
    )
    trace = trace_step(config, mesh)
    assert trace.implementations == {"screening": {"pallas_tpu"}}
    for on_last in (False, True):
        found = count(trace.traced.jaxpr, screening_formula(config.model, length, on_last))
        assert not found.uncounted
        np.testing.assert_allclose(
            found.total, 3 * 4 * config.model.forward_flops(length), rtol=0.1
        )


@pytest.mark.parametrize("name", ["tiny", "tiny_transformer"])
@pytest.mark.parametrize("length", [64, 512])
def test_a_step_counts_what_the_models_formula_says(name, length):
    """Within 10 %, where the loops over bands or blocks, whose lengths are only known when they
    run, are left out on both sides: a formula of one token at a time, T times."""
    config = override(find_config(name), data={"sequence_length": length})
    model = build(config.model)
    optimizer = make_optimizer(config.optim, config.train.steps, facts_of(model))

    def initial(key):
        params = model.init(key, jnp.zeros((1, 2), jnp.int32))["params"]
        return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))

    rows = config.data.batch_size
    tokens = jax.ShapeDtypeStruct((rows, length + 1), jnp.int32)
    state = jax.eval_shape(initial, jax.random.key(0))
    found = flops(experiment_step(config), state, {"tokens": tokens})
    assert found.uncounted
    formula = 3 * rows * length * config.model.forward_flops(1)
    np.testing.assert_allclose(found.total, formula, rtol=0.1)
