"""Programs compiled for accelerators that are not attached."""

from experiments.aot import libtpu  # noqa: F401  what libtpu needs for it
