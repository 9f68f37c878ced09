"""`python -m tests.train.hosts WHAT ...`: one of the processes of the multi-host tests.

`rows` checks that batches are placed right on many meshes. `train FOLDER SECONDS NAME ...` is the
train command; it waits SECONDS after each step, says after which step it ended, and leaves every
state that it saves or restores in FOLDER.
"""

import contextlib
import sys
import time
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from multiscreen_jax import sharding
from multiscreen_jax.train import MeshConfig, distributed, one_line_errors, train
from multiscreen_jax.train.checkpoint import Checkpoints
from multiscreen_jax.train.command_line import parse
from multiscreen_jax.train.signals import StopRequest

ROWS = 12


@contextlib.contextmanager
def states_kept(folder):
    """Writes saved-STEP.npz and restored-STEP.npz: all arrays of a state, whole, by path."""

    def keep(kind, state):
        whole = multihost_utils.process_allgather(state, tiled=True)
        leaves = jax.tree_util.tree_flatten_with_path(whole)[0]
        if jax.process_index() == 0:
            named = {sharding.path_name(path): leaf for path, leaf in leaves}
            np.savez(Path(folder) / f"{kind}-{int(whole.step)}.npz", **named)

    def save_and_keep(self, state, *rest):
        keep("saved", state)
        save(self, state, *rest)

    def restore_and_keep(self, *rest):
        found = restore(self, *rest)
        if found is not None:
            keep("restored", found[0])
        return found

    save, restore = Checkpoints.save, Checkpoints.restore
    Checkpoints.save, Checkpoints.restore = save_and_keep, restore_and_keep
    try:
        yield
    finally:
        Checkpoints.save, Checkpoints.restore = save, restore


def check_rows():
    """Prints, for every mesh, the rows of a batch of 12 that lie on this process's devices."""
    distributed.initialize(MeshConfig(cpu_devices=3))
    for sizes in [(6, 1, 1), (1, 6, 1), (2, 3, 1), (3, 1, 2), (1, 2, 3), (1, 1, 6)]:
        data, fsdp, model = sizes
        where = sharding.batch_sharding(sharding.make_mesh(data=data, fsdp=fsdp, model=model))
        batch = {
            "tokens": np.arange(ROWS * 2).reshape(ROWS, 2),
            "weights": np.arange(ROWS, dtype=np.float32),
        }
        rows = sharding.process_rows(ROWS, where)
        placed = sharding.place_batch({name: x[rows] for name, x in batch.items()}, where)
        for name, array in placed.items():
            assert array.shape == batch[name].shape
            for shard in array.addressable_shards:
                np.testing.assert_array_equal(shard.data, batch[name][shard.index])
        print(f"{sizes}: {rows.tolist()}")


def main():
    if sys.argv[1] == "rows":
        return check_rows()
    folder, seconds = sys.argv[2], float(sys.argv[3])
    after = StopRequest.after

    def slowly(self, step):
        time.sleep(seconds)
        return after(self, step)

    StopRequest.after = slowly
    with one_line_errors(), states_kept(folder):
        config = parse("experiments.configs", "train", sys.argv[4:])
        distributed.initialize(config.mesh)
        result = train(config)
        print(f"ended after step {result.step} by {result.stopped_by}")


if __name__ == "__main__":
    main()
