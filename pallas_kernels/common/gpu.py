"""Facts about the GPU that a kernel is traced for."""

import jax


def compute_capability() -> int | None:
    """The first local GPU's, 80 for 8.0; None without a GPU (compiling ahead, interpretation).

    NotImplementedError for a GPU that is not NVIDIA's.
    """
    try:
        capability = jax.local_devices(backend="gpu")[0].compute_capability
    except RuntimeError:
        return None
    if not capability.replace(".", "").isdecimal():
        raise NotImplementedError(f"the kernels are for NVIDIA GPUs, and this is a {capability}")
    return int(capability.replace(".", ""))
