"""Compiles a training step of Multiscreen for a TPU with no TPU attached; prints what it needs.

python -m tests.aot.compile_tpu v5e:1x1
"""

import os
import sys
from pathlib import Path

os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # there is no metadata server to ask
os.environ["JAX_PLATFORMS"] = "cpu"
if not any(Path("/dev").glob("accel*")) and not any(Path("/dev").glob("vfio/[0-9]*")):
    # libtpu guards the hardware with a lock file; without hardware it only stops parallel tests.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import multiscreen_jax as mj


def main(topology: str) -> None:
    device = topologies.get_topology_desc(topology, platform="tpu").devices[0]
    mesh = Mesh(np.array([device]), ("d",))
    where = NamedSharding(mesh, PartitionSpec())
    config = mj.models.MultiscreenConfig.from_psi(
        4, vocab_size=256, dtype="bfloat16", implementation="chunked"
    )
    model = mj.models.Multiscreen(config)
    tokens = jax.ShapeDtypeStruct((2, 1025), np.int32, sharding=where)
    shapes = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 1), np.int32))["params"]
    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), shapes)

    def loss(params, tokens):
        return mj.losses.next_token(model, params, {"tokens": tokens})

    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        compiled = jax.jit(jax.value_and_grad(loss)).lower(params, tokens).compile()
    memory = compiled.memory_analysis()
    print("temp_mib", memory.temp_size_in_bytes / 2**20)


if __name__ == "__main__":
    main(sys.argv[1])
