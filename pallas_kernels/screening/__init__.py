"""Screening: attention with an absolute threshold and a learned window (Multiscreen)."""

from pallas_kernels.common.sharding import over_sequence
from pallas_kernels.screening import api, parallel
from pallas_kernels.screening.decode import screening_decode

screening = over_sequence(
    api.screening,
    parallel.screening,
    in_axes={
        "q": "bth.", "k": "bth.", "v": "bth.", "window": "h", "width": "h", "segment_ids": "bt",
    },
    out_axes="bth.",
    applies=lambda given, share: (
        given["q"].shape == given["k"].shape and given.get("gap") is None
    ),
)  # fmt: skip

__all__ = ["screening", "screening_decode"]
