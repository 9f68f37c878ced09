"""Helpers shared by the ops: numerics and the choice of an implementation."""
