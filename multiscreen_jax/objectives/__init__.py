"""Objectives, as values that an experiment's config holds: what is to be learned of a batch."""

from multiscreen_jax.objectives.next_token import NextToken
from multiscreen_jax.objectives.objective import Batch, Loss, Objective, Work

__all__ = ["Batch", "Loss", "NextToken", "Objective", "Work"]
