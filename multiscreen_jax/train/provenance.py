"""Facts that all processes of a run must share: settings, versions, the library's own code."""

import hashlib
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

import multiscreen_jax
import pallas_kernels
from multiscreen_jax.train import config_json, own_code
from multiscreen_jax.train.config import ExperimentConfig

# Of these each process may have its own: they change no number, or are the first one's alone.
_OWN = {
    "data": ("prefetch",),
    "mesh": ("join_seconds", "heartbeat_seconds"),
    "train": ("tensorboard", "wandb_project", "profile_steps"),
}
_JAX_OPTIONS = (
    "jax_default_matmul_precision",
    "jax_default_prng_impl",
    "jax_enable_x64",
    "jax_numpy_dtype_promotion",
    "jax_threefry_partitionable",
)


def facts(config: ExperimentConfig) -> dict[str, Any]:
    """The facts by name, as JSON has them; settings by section and field."""
    settings = config_json.to_dict(config)
    for section, names in _OWN.items():
        for name in names:
            del settings[section][name]
    return {
        **settings,
        **{name.upper(): jax.config.values[name] for name in _JAX_OPTIONS},
        "version of Python": ".".join(platform.python_version_tuple()[:2]),
        **{f"version of {name}": version(name) for name in ("jax", "jaxlib", "flax", "optax")},
        "code of the library": _code_digest(),
        "code of the experiment": own_code.digest_of(config),
    }


def _code_digest() -> str:
    digest = hashlib.sha256()
    for package in (multiscreen_jax, pallas_kernels):
        root = Path(package.__path__[0])
        for path in sorted(root.rglob("*.py")):
            digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:12]
