"""Compiles a training step of Multiscreen for TPUs with no TPU attached; prints what it needs.

python -m tests.aot.compile_tpu v5e:2x2 pallas_tpu

With several chips, parameters and batch are divided among them.
"""

import dataclasses
import sys

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

import multiscreen_jax as mj
from experiments.aot import libtpu
from multiscreen_jax import sharding
from multiscreen_jax.layers.parameters import facts_of
from pallas_kernels.common.dispatch import record_choices


def main(topology: str, implementation: str) -> None:
    devices = libtpu.devices(topology)
    shape = (1, len(devices) // 2 or 1, 1, min(len(devices), 2))  # data, fsdp, seq, model
    mesh = Mesh(
        np.array(devices).reshape(shape), sharding.MESH_AXES, axis_types=(AxisType.Auto,) * 4
    )
    config = mj.models.MultiscreenConfig.from_psi(4, vocab_size=256, dtype="bfloat16")
    model = mj.models.Multiscreen(config)
    if implementation != "default":
        model = model.clone(config=dataclasses.replace(config, implementation=implementation))
    shapes = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 1), np.int32))["params"]
    params = jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
        shapes,
        sharding.parameter_shardings(shapes, facts_of(model), mesh),
    )
    tokens = jax.ShapeDtypeStruct((4, 1025), np.int32, sharding=sharding.batch_sharding(mesh))

    def loss(params, tokens):
        return mj.losses.next_token(model, params, {"tokens": tokens})

    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh), record_choices() as choices:
        compiled = jax.jit(jax.value_and_grad(loss)).lower(params, tokens).compile()
    memory = compiled.memory_analysis()
    print("implementations", *choices["screening"])
    print("temp_mib", memory.temp_size_in_bytes / 2**20)


if __name__ == "__main__":
    main(*sys.argv[1:])
