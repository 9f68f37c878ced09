"""What is known of the TPU that a kernel is traced for."""

from jax.experimental.pallas import tpu as pltpu


def tpu_chip() -> str:
    """The chip's name, such as "v5e"; "tpu" where none is known, as in interpretation."""
    try:
        return str(pltpu.get_tpu_info().chip_version)
    except (ValueError, NotImplementedError):
        return "tpu"


def kernel_memory() -> int:
    """Bytes of a core's vector memory that a kernel may use.

    Where no chip is known those of a v5p, which has little. The compiler needs some itself.
    """
    try:
        capacity = pltpu.get_tpu_info().vmem_capacity_bytes
    except (ValueError, NotImplementedError):
        capacity = 64 * 2**20
    return min(100 * 2**20, capacity - 2**18)
