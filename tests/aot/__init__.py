"""Programs compiled for accelerators that are not attached, and what libtpu needs for it."""

import os
from pathlib import Path

os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # there is no metadata server to ask
os.environ["JAX_PLATFORMS"] = "cpu"
if not any(Path("/dev").glob("accel*")) and not any(Path("/dev").glob("vfio/[0-9]*")):
    # libtpu guards the hardware with a lock file; without hardware it only stops parallel tests.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
