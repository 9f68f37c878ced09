"""`python -m tests.train.families NAME [more]`: training on eight devices under meshes, and on one.

Ends with an error unless the loss curve, the gradients of the first step and the parameters after
the last agree, and unless every device holds its share of activations, parameters and optimizer
state. In float64, so that no wrong division hides behind rounding.
"""

import math
import re
import sys

import jax
import numpy as np
import optax

from multiscreen_jax import sharding
from multiscreen_jax.models.registry import create
from multiscreen_jax.train.state import TrainState, abstract_state, create_state
from multiscreen_jax.train.step import make_train_step

# Numbers that nothing else in these models has.
ROWS, LENGTH, WIDTH, VOCABULARY = 8, 256, 88, 90
HEADS = {"num_heads": 4}
FAMILIES = {
    "multiscreen-tiny": {**HEADS, "window_threshold": 40.0},
    "transformer-8m": {
        **HEADS,
        "num_kv_heads": 2,
        "head_dim": 16,
        "num_layers": 2,
        "feed_forward_dim": 240,
    },
    # By default its matrices would have half as many rows as a sequence has tokens.
    "retnet-tiny": {**HEADS, "feed_forward_dim": 112},
    "deltanet-tiny": HEADS,
    "mamba2-mlp-tiny": HEADS,
    "gdn-tiny": HEADS,
    "log-linear-mamba2-tiny": HEADS,
    "log-linear-gdn-tiny": HEADS,
}
MESHES = [  # data, fsdp, seq, model
    (2, 4, 1, 1),
    (1, 1, 2, 4),
]
MORE = [(1, 1, 8, 1), (8, 1, 1, 1), (1, 8, 1, 1), (2, 1, 1, 4), (1, 2, 2, 2)]
LENGTHS = [LENGTH // sizes[2] for sizes in (*MESHES, *MORE)]
STEPS = 3


def rows_of(batch: int) -> np.ndarray:
    return np.random.default_rng(batch).integers(0, VOCABULARY, (ROWS, LENGTH + 1), np.int32)


def optimizer() -> optax.GradientTransformation:
    """Keeps the gradient that it takes: the trace of a momentum of zero."""
    return optax.chain(optax.trace(0.0), optax.scale(-0.05))


def train(model, mesh) -> tuple[list[float], TrainState, TrainState, str, float]:
    """Losses, the states after the first and the last step, the compiled step, and the share of
    the last state that one device holds."""
    with jax.set_mesh(mesh):
        state = create_state(model, optimizer(), mesh, seed=0)
        where = jax.tree.map(lambda x: x.sharding, abstract_state(model, optimizer(), mesh))
        step = jax.jit(
            make_train_step(model, optimizer(), optax.constant_schedule(0.05)),
            out_shardings=(where, None),
        )
        place = sharding.batch_sharding(mesh)
        batches = [{"tokens": jax.device_put(rows_of(n), place)} for n in range(STEPS)]
        compiled = step.lower(state, batches[0]).compile()
        losses, states = [], []
        for batch in batches:
            state, metrics = compiled(state, batch)
            losses.append(float(metrics["loss"]))
            states.append(jax.device_get(state))
    return losses, states[0], states[-1], compiled.as_text(), share_of_state(state)


def check_tree(got, want, limit: float, what: str) -> None:
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(want), strict=True
    ):
        error = np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-30)
        assert error <= limit, f"{what} {sharding.path_name(path)}: relative error {error:.1e}"


def most_tokens(program: str, layers: int, rows: int) -> int:
    """Most tokens of one layer that an array of the residual stream's width has on one device.

    Args:
        rows: of the batch that a device should have. A single one has no axis, layers have one.
    """
    found = []
    for shape in re.findall(r"\bf64\[([\d,]+)\]", program):
        *dims, width = (int(n) for n in shape.split(","))
        # Weights have other numbers of rows; before rows and tokens may be layers.
        if width == WIDTH and dims and dims[-1] in LENGTHS:
            only_layers = rows == 1 and dims[-2:-1] == [layers]
            found.append(dims[-1] if only_layers else math.prod(dims[-2:]))
    return max(found)


def share_of_state(state: TrainState) -> float:
    """Numbers of parameters and optimizer state on one device, by those of all."""
    leaves = jax.tree.leaves((state.params, state.optimizer_state))
    held = sum(math.prod(x.sharding.shard_shape(x.shape)) for x in leaves)
    return held / sum(x.size for x in leaves)


def main(name: str, meshes: list[tuple[int, ...]]) -> None:
    fields = {"model_dim": WIDTH, "vocab_size": VOCABULARY}
    fields |= {"dtype": "float64", "param_dtype": "float64"}
    model, _ = create(name, **fields, **FAMILIES[name])
    one = jax.sharding.Mesh(
        np.array(jax.devices()[:1]).reshape(1, 1, 1, 1), sharding.MESH_AXES,
        axis_types=(jax.sharding.AxisType.Auto,) * 4,
    )  # fmt: skip
    losses, first, last, program, share = train(model, one)
    assert losses[-1] != losses[0]
    layers = model.config.num_layers
    whole = most_tokens(program, layers, ROWS)
    assert (whole, share) == (ROWS * LENGTH, 1)
    for sizes in meshes:
        got = train(model, sharding.make_mesh(*sizes))
        np.testing.assert_allclose(got[0], losses, rtol=1e-12, err_msg=str(sizes))
        check_tree(gradients_of(got[1]), gradients_of(first), 1e-10, f"{sizes} gradient of")
        check_tree(got[2].params, last.params, 1e-10, f"{sizes} last")
        held = most_tokens(got[3], layers, ROWS // math.prod(sizes[:2]))
        allowed = whole // math.prod(sizes[:3])
        assert held <= allowed, f"{sizes}: {held} tokens on one device, allowed {allowed}"
        # What does not divide evenly stays whole, such as the rows of the embedding under model=4.
        shares, slack = sizes[1] * sizes[3], 1.2 if sizes[3] == 1 else 1.4
        assert got[4] <= slack / shares, f"{sizes}: one device holds {got[4]:.0%} of the state"
        print(*sizes, held, round(got[4], 3))


def gradients_of(state: TrainState):
    return state.optimizer_state[0].trace


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    main(sys.argv[1], MORE if "more" in sys.argv else MESHES)
