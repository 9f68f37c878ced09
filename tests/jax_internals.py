"""What tests need of JAX that has no public name or differs between versions, all of it here."""

from collections.abc import Callable

import jax
from jax._src.lib.mlir import ir
from jax._src.pallas.mosaic.interpret import interpret_pallas_call
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

__all__ = ["on_device", "races_found", "triton_kernels"]


def races_found() -> bool:
    """Whether the last TPU kernel interpreted with `detect_races=True` had a race."""
    return interpret_pallas_call.races.races_found


def on_device(kind: str, platform: str, cores: int = 1):
    """Sets a mesh of one such device, absent here; newer JAX lowers for a GPU in it alone."""
    device = AbstractDevice(device_kind=kind, num_cores=cores, platform=platform)
    mesh = AbstractMesh((1,), ("data",), axis_types=(AxisType.Auto,), abstract_device=device)
    return jax.sharding.use_abstract_mesh(mesh)


def triton_kernels(function: Callable, *operands: jax.ShapeDtypeStruct) -> dict[str, str]:
    """By name, Triton's intermediate language of the kernels that a function lowers to."""
    from jaxlib.triton import dialect  # where there is none, only its tests fail

    with on_device("NVIDIA H100 80GB HBM3", "cuda", cores=132):
        lowered = jax.jit(function).trace(*operands).lower(lowering_platforms=("cuda",))
    found = {}

    def visit(operation):
        operation = operation.operation
        if (
            operation.name == "stablehlo.custom_call"
            and "mhlo.backend_config" in operation.attributes
        ):
            config = operation.attributes["mhlo.backend_config"]
            with ir.Context() as context:
                dialect.register_dialect(context)
                module = ir.Module.parse(config["ir"].value_bytes)
                found[config["name"].value] = module.operation.get_asm()
        return ir.WalkResult.ADVANCE

    lowered.compiler_ir("stablehlo").operation.walk(visit)
    return found
