"""What is known of the TPU that a kernel is traced for."""

from jax.experimental.pallas import tpu as pltpu


def tpu_chip() -> str:
    """The chip's name, such as "v5e"; "tpu" where none is known, as in interpretation."""
    try:
        return str(pltpu.get_tpu_info().chip_version)
    except (ValueError, NotImplementedError):
        return "tpu"


def vector_memory() -> int:
    """Bytes of a core's vector memory; where no chip is known those of a v5p, which has little."""
    try:
        return pltpu.get_tpu_info().vmem_capacity_bytes
    except (ValueError, NotImplementedError):
        return 64 * 2**20
