"""Which recorded systems there are, which of them this library has, and which it does not have yet.

A file is `<folder>/<system>__<case>.npz`; the config inside names the system of `residual__*`.
"""

import json
from pathlib import Path

import numpy as np

from multiscreen_jax.models.registry import ARCHITECTURES
from tests.goldens import golden_names, golden_path

FOLDERS = ("decoders", "recurrent_moe", "beyond_text")
PENDING = Path(__file__).with_name("pending.txt")


def implemented():
    """{system: name of the source that reads it}, from the records of all architectures."""
    sources = [source for each in ARCHITECTURES for source in each.sources]
    return {source.recorded: source.name for source in sources if source.recorded}


def pending():
    return PENDING.read_text().split()


def files():
    """All files of these folders: those here, and with MULTISCREEN_GOLDENS the full set."""
    return [name for folder in FOLDERS for name in golden_names(folder, "*.npz")]


def system_of(name):
    system = Path(name).name.partition("__")[0]
    return facts_of(name)["system"] if system == "residual" else system


def config_of(name):
    """What the reference was made with."""
    facts = facts_of(name)
    return facts.get("cfg", facts)


def facts_of(name):
    with np.load(golden_path(name)) as file:
        return json.loads(str(file["config"]))


def is_here(name):
    """Whether a file lies in the repository."""
    return (Path(__file__).parent / name).exists()
