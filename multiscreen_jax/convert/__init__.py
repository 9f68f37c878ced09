"""Weights between PyTorch names and our parameter trees, and safetensors files.

    params = mj.convert.from_torch("multiscreen/lucidrains", torch_model.state_dict(), config)
    torch_model.load_state_dict(as_tensors(mj.convert.to_torch("multiscreen/lucidrains", params,
                                                               config)))

One table per PyTorch implementation says which tensor holds which of our arrays, and how
(`multiscreen.py`, `transformer.py`); `engine.py` reads a table in both directions.
"""

from multiscreen_jax.convert.engine import from_torch, to_torch, trained_length
from multiscreen_jax.convert.files import load_safetensors, save_safetensors
from multiscreen_jax.convert.sources import describe, sources

__all__ = [
    "describe",
    "from_torch",
    "load_safetensors",
    "save_safetensors",
    "sources",
    "to_torch",
    "trained_length",
]
