"""What libtpu must find in the environment to compile where there is no TPU.

The compiler reads it once, when it is loaded: import this module before anything asks for a TPU
topology.
"""

import os
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # there is no metadata server to ask
os.environ.setdefault("TPU_STDERR_LOG_LEVEL", "3")
if not any(Path("/dev").glob("accel*")) and not any(Path("/dev").glob("vfio/[0-9]*")):
    # libtpu guards the hardware with a lock file; without hardware it only stops parallel runs.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
