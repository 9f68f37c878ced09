"""Timing of the library against itself and against PyTorch implementations of Multiscreen."""
