"""A user's own Python file that an experiment is made of: its model, its objective, its config.

    python -m experiments.train my_model.py --train.output-dir runs/mine
    python -m experiments.generate runs/mine --code runs/mine/code.py

A run keeps a copy of its file as OUTPUT/code.py. Nothing runs the copy unasked: whoever opens the
run names the file to run, as one does who imports it in Python before opening the run.
"""

import dataclasses
import hashlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from multiscreen_jax.paths import checked_path

COPY = "code.py"
_PREFIX = "own_code_"


def load(path: str | Path) -> ModuleType:
    """Runs a file, so that its classes are known by name, and gives its module.

    A file of the same content runs once: a class has one definition.

    Raises:
        ValueError: there is no such file, or it fails; in one line that names the file.
    """
    file = checked_path(path, "the file").expanduser().resolve()
    try:
        name = _PREFIX + hashlib.sha256(file.read_bytes()).hexdigest()[:12]
    except OSError as error:
        raise ValueError(
            f"{path} cannot be read ({error.strerror}); allowed: the path of a Python file"
        ) from None
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} is no Python file; allowed: a file whose name ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} cannot be run: {type(error).__name__}: {reason}") from error
    return module


def digest_of(config: Any) -> str | None:
    """Digest of the user's file that a class in the config comes from; None: there is no such."""
    names = (type(value).__module__ for value in _dataclasses(config))
    return next((x.removeprefix(_PREFIX) for x in names if x.startswith(_PREFIX)), None)


def file_of(config: Any) -> Path | None:
    """The file itself."""
    digest = digest_of(config)
    return None if digest is None else Path(str(sys.modules[_PREFIX + digest].__file__))


def keep(config: Any, output: Path) -> str | None:
    """Copies the config's file into a run's folder; says so where it replaces another."""
    file = file_of(config)
    if file is None:
        return None
    copy, code = output / COPY, file.read_bytes()
    before = copy.read_bytes() if copy.is_file() else None
    if before != code:
        temporary = copy.with_suffix(".tmp")
        temporary.write_bytes(code)
        temporary.replace(copy)
    if before in (None, code):
        return None
    return f"{file} is not what this run began with; {copy} is replaced"


def _dataclasses(value: Any) -> Iterator[Any]:
    if isinstance(value, tuple):
        for each in value:
            yield from _dataclasses(each)
    elif dataclasses.is_dataclass(value):
        yield value
        for field in dataclasses.fields(value):
            yield from _dataclasses(getattr(value, field.name))
