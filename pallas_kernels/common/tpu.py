"""What is known of the TPU that a kernel is traced for."""

from typing import Any

from pallas_kernels.common.pallas import pltpu


def tpu_chip() -> str:
    """The chip's name, such as "v5e"; "tpu" where none is known, as in interpretation."""
    info = _info()
    return "tpu" if info is None else str(info.chip_version)


def kernel_memory() -> int:
    """Bytes of a core's vector memory that a kernel may use.

    Where no chip is known those of a v5p, which has little. The compiler needs some itself.
    """
    info = _info()
    capacity = 64 * 2**20 if info is None else info.vmem_capacity_bytes
    return min(100 * 2**20, capacity - 2**18)


def states_too_large(
    count: int, key_dim: int, value_dim: int, needed: int, room: int
) -> NotImplementedError:
    """Of a head's states, which with all around them need more bytes than there is room for."""
    return NotImplementedError(
        f"{count} states of K={key_dim}, V={value_dim} need {needed / 2**20:.1f} MiB of vector "
        f"memory, and kernels may use {room / 2**20:.1f} MiB"
    )


def _info() -> Any:
    try:
        return pltpu.get_tpu_info()
    except (ValueError, NotImplementedError):
        return None
