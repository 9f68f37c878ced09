"""From `NAME --section.field value ...` to an ExperimentConfig.

NAME is that of a config, or the path of a Python file of one's own that defines `config()`.
`--model PRESET` puts another registered model on its data and steps.
"""

import dataclasses
import difflib
import importlib
import inspect
import pkgutil
import sys
import typing
from collections.abc import Sequence
from types import ModuleType

import tyro

from multiscreen_jax.models.registry import config_for, preset_names
from multiscreen_jax.train import options, own_code
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
    module = own_code.load(name) if name.endswith(".py") else _module(package, name)
    default, words = _with_model(_config_of(module, name), words)
    kind = _kind_of(default)
    read = options.read(
        kind,
        default=kind(**vars(default)),
        args=words,
        prog=f"{prog} {name}",
        description=inspect.getdoc(module) or "",
        config=(tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff),
    )
    return ExperimentConfig(**vars(read))


def _config_of(module: ModuleType, name: str) -> ExperimentConfig:
    make = getattr(module, "config", None)
    if not callable(make):
        raise ValueError(f"{name} has no function config(); allowed: a file that defines one")
    config = make()
    if not isinstance(config, ExperimentConfig):
        given = type(config).__name__
        raise ValueError(f"config() of {name} gives {given}; allowed: an ExperimentConfig")
    return config


def _with_model(config: ExperimentConfig, words: list[str]) -> tuple[ExperimentConfig, list[str]]:
    """The config with the preset of `--model NAME`, if there is one, and the other words."""
    name, rest = None, []
    words = list(words)
    while words:
        word = words.pop(0)
        flag, equals, value = word.partition("=")
        if flag != "--model":
            rest.append(word)
        elif equals or words:
            name = value if equals else words.pop(0)
        else:
            raise ValueError(f"--model needs a name; known: {', '.join(preset_names())}")
    if name is None:
        return config, rest
    model = config_for(name, vocab_size=config.model.vocab_size)
    return dataclasses.replace(config, model=model), rest


def _kind_of(config: ExperimentConfig) -> type:
    """ExperimentConfig with the classes of this one's model and objective, whose fields become
    options; which classes these are is no option."""
    hints = typing.get_type_hints(ExperimentConfig)
    hints |= {name: type(getattr(config, name)) for name in ("model", "objective")}
    fields = [(name, kind) for name, kind in hints.items()]
    return dataclasses.make_dataclass(
        "ExperimentConfig", fields, bases=(ExperimentConfig,), frozen=True, kw_only=True
    )


def _overview(package: str, prog: str) -> str:
    lines = [
        f"usage: {prog} NAME [--model PRESET] [--section.field value ...]",
        f"       {prog} FILE.py ...      a file of yours that defines config()",
        "",
        "Named configs:",
    ]
    for name in config_names(package):
        first, *_ = (inspect.getdoc(_module(package, name)) or "").splitlines()
        lines.append(f"  {name:24} {first}")
    lines += ["", f"All options of one: {prog} NAME --help"]
    return "\n".join(lines)
