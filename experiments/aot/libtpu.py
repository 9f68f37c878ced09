"""Settings that libtpu needs to compile where there is no TPU.

The compiler reads it once, when it is loaded: import this module before anything asks for a TPU
topology.
"""

import os
from pathlib import Path
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # there is no metadata server to ask
os.environ.setdefault("TPU_STDERR_LOG_LEVEL", "3")
if not any(Path("/dev").glob("accel*")) and not any(Path("/dev").glob("vfio/[0-9]*")):
    # libtpu guards the hardware with a lock file; without hardware it only stops parallel runs.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")


def devices(topology: str) -> list[Any]:
    """The chips of a slice such as "v5e:2x2" or "v5p:2x2x1", as the compiler describes them."""
    from jax.experimental import topologies

    # A host has 2 x 2 chips, unless older versions are told that a smaller slice has fewer.
    x, y, *_ = (int(size) for size in topology.partition(":")[2].split("x"))
    smaller = {"chips_per_host_bounds": [min(x, 2), min(y, 2), 1]} if min(x, y) < 2 else {}
    return topologies.get_topology_desc(topology, platform="tpu", **smaller).devices
