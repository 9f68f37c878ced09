"""Weights between PyTorch names and our parameter trees, and safetensors files.

    params = mj.convert.from_torch("multiscreen/lucidrains", torch_model.state_dict(), config)
    named = mj.convert.to_torch("multiscreen/lucidrains", params, config)
    torch_model.load_state_dict({name: torch.from_numpy(x) for name, x in named.items()})
    mj.convert.save_safetensors("weights.safetensors", params, config)
    params, config = mj.convert.load_safetensors("weights.safetensors")

One table per PyTorch implementation says which tensor holds which of our arrays, and how; it stands
in the record of its architecture (`models/conversion.py`). `engine.py` reads a table both ways.
"""

from multiscreen_jax.convert.engine import from_torch, module_from_torch, to_torch, trained_length
from multiscreen_jax.convert.files import load_safetensors, save_safetensors
from multiscreen_jax.convert.sources import describe, read_config, sources

__all__ = [
    "describe",
    "from_torch",
    "load_safetensors",
    "module_from_torch",
    "read_config",
    "save_safetensors",
    "sources",
    "to_torch",
    "trained_length",
]
