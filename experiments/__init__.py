"""Commands: train, and the configs they know by name."""
