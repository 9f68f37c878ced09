"""From `NAME --section.field value ...` to an ExperimentConfig."""

import difflib
import importlib
import inspect
import pkgutil
import sys
from collections.abc import Sequence
from types import ModuleType

import tyro

from multiscreen_jax.train import options
from multiscreen_jax.train.config import ExperimentConfig


def config_names(package: str) -> list[str]:
    """Names of the configs in a package: its modules with a function `config()`."""
    folder = importlib.import_module(package).__path__
    names = (module.name for module in pkgutil.iter_modules(folder))
    return sorted(name for name in names if not name.startswith("_"))


def named_config(package: str, name: str) -> ExperimentConfig:
    """The config of a name such as quickstart or multiscreen-1.3b (- and . count as _)."""
    return _module(package, name).config()


def _module(package: str, name: str) -> ModuleType:
    """The module of a config's name; an unknown one is a ValueError with near matches."""
    names = config_names(package)
    module = name.replace("-", "_").replace(".", "_")
    if module not in names:
        near = difflib.get_close_matches(module, names, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise ValueError(f"unknown config {name!r}; {hint}known: {', '.join(names)}")
    return importlib.import_module(f"{package}.{module}")


def parse(package: str, prog: str, arguments: Sequence[str] | None = None) -> ExperimentConfig:
    """The config that a command line asks for.

    Args:
      package: where the named configs are, e.g. "experiments.configs".
      prog: how the command is called, for the help text.
      arguments: the command line without the program; None takes sys.argv.

    Raises:
      ValueError: an unknown name, or a field's value that is not allowed.
      SystemExit: 0 after --help, 2 for options that do not exist or cannot be read.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview(package, prog))
        sys.exit(0 if arguments else 2)
    name, *words = arguments
    default = named_config(package, name)
    description = inspect.getdoc(_module(package, name)) or ""
    return options.read(
        ExperimentConfig,
        default=default,
        args=words,
        prog=f"{prog} {name}",
        description=description,
        # The named config decides which kind of model there is; its fields are options.
        config=(tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff),
    )


def _overview(package: str, prog: str) -> str:
    lines = [f"usage: {prog} NAME [--section.field value ...]", "", "Named configs:"]
    for name in config_names(package):
        first, *_ = (inspect.getdoc(_module(package, name)) or "").splitlines()
        lines.append(f"  {name:24} {first}")
    lines += ["", f"All options of one: {prog} NAME --help"]
    return "\n".join(lines)
