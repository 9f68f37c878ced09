"""What a training step needs on accelerators that are not attached; see `experiments.aot_check`."""
