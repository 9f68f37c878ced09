"""Screening: attention with an absolute threshold and a learned window (Multiscreen)."""

from pallas_kernels.screening.api import screening
from pallas_kernels.screening.decode import screening_decode

__all__ = ["screening", "screening_decode"]
