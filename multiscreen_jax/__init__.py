"""Language models beyond softmax attention, in JAX and Flax.

    import multiscreen_jax as mj

    model, config = mj.models.create("multiscreen-4m", vocab_size=256)
    params = model.init(jax.random.key(0), tokens)["params"]
    logits = model.apply({"params": params}, tokens).logits

Start reading at `models/multiscreen.py`.
"""

import importlib

_SUBMODULES = (
    "convert",
    "data",
    "evaluation",
    "inspect",
    "losses",
    "mixers",
    "models",
    "pretrained",
    "sharding",
    "train",
)

__all__ = [*_SUBMODULES, "generate", "stream"]


def __getattr__(name: str):
    # Submodules load on first use: `import multiscreen_jax` stays fast, and a user who only wants
    # a model does not pay for the data and checkpoint libraries.
    if name in _SUBMODULES:
        return importlib.import_module(f"multiscreen_jax.{name}")
    if name in ("generate", "stream"):
        return getattr(importlib.import_module("multiscreen_jax.generation"), name)
    raise AttributeError(f"module 'multiscreen_jax' has no attribute '{name}'")


def __dir__():
    return sorted(__all__)
