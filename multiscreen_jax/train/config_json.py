"""ExperimentConfig <-> JSON, and the comparison of two of them."""

import contextlib
import dataclasses
import json
import typing
from pathlib import Path
from typing import Any

from multiscreen_jax.json_files import parse
from multiscreen_jax.models.registry import config_classes
from multiscreen_jax.objectives import NextToken, Objective
from multiscreen_jax.train import checks
from multiscreen_jax.train.config import ExperimentConfig
from multiscreen_jax.values import Value, from_plain, to_plain

SECTIONS = tuple(field.name for field in dataclasses.fields(ExperimentConfig))
LATER = {"objective": to_plain(NextToken(), Objective)}  # of older runs, which lack the section

# What may change when a run is continued, because it does not change what is being trained: the
# devices, how the model is computed, how far ahead data is read, and all of `train` but these two.
_TRAIN_FIELDS_THAT_MATTER = ("train.seed", "train.init_from")
_OTHER_HARMLESS = (
    "data.prefetch",
    "model.precision",
    "model.remat",
    "model.unroll_layers",
    "model.implementation",
    "model.block_summaries",
)

# What of a model may change besides, when a new run starts from its parameters.
INFERENCE_RULES = (
    "model.trained_length",
    "model.rope_factor",
    "model.dtype",
    "model.infinite_windows",
)


def to_dict(config: ExperimentConfig) -> dict[str, Any]:
    """Nested plain dict of JSON's types; the model's class is stored under `class`."""
    return {**to_plain(config), "model": model_to_dict(config.model)}


def model_to_dict(config: Any) -> dict[str, Any]:
    """A model config as a plain dict with its class's name."""
    return {"class": type(config).__name__, **to_plain(config)}


def from_dict(values: dict[str, Any]) -> ExperimentConfig:
    """The inverse of `to_dict`. Unknown and missing sections, fields and classes are errors."""
    if not isinstance(values, dict):
        checks.refuse("the config", values, "an object with sections")
    fields = set(SECTIONS)
    if unknown := sorted(set(values) - fields):
        raise ValueError(f"config section {unknown[0]!r} is unknown; allowed: {sorted(fields)}")
    values = {**LATER, **values}
    if missing := sorted(fields - set(values)):
        raise ValueError(f"config section {missing[0]!r} is missing")
    hints = typing.get_type_hints(ExperimentConfig)
    sections = {name: _section(name, hints[name], values[name]) for name in fields - {"model"}}
    return ExperimentConfig(model=model_from_dict(values["model"]), **sections)


def model_from_dict(values: dict[str, Any]) -> Any:
    """The inverse of `model_to_dict`."""
    if not isinstance(values, dict):
        checks.refuse("model", values, "an object with fields")
    name, known = values.get("class"), config_classes()
    if name not in known:
        raise ValueError(f"model.class is {name!r}; allowed: {', '.join(known)}")
    fields = {key: value for key, value in values.items() if key != "class"}
    return _section("model", known[name], fields)


def save(config: ExperimentConfig, path: Path) -> None:
    """Writes the config as readable JSON, replacing the file in one move.

    ValueError where that would be a file of another kind, which is the user's own.
    """
    if _is_another_kind(path):
        raise ValueError(
            f"{path} exists and is not a run's settings; allowed: another train.output-dir, or "
            "this one when that has another name"
        )
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(to_dict(config), indent=2) + "\n")
    temporary.replace(path)


def _is_another_kind(path: Path) -> bool:
    try:
        values = parse(path.read_bytes(), str(path))
    except (OSError, ValueError):  # not there, or cut short by a machine that died
        return False
    return not isinstance(values, dict) or not values.keys() >= set(SECTIONS) - set(LATER)


def differences(old: dict[str, Any], new: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """{dotted name: (old value, new value)} of all leaves that differ."""
    before, after = dict(_leaves(old)), dict(_leaves(new))
    names = [*before, *(name for name in after if name not in before)]
    return {
        name: (before.get(name), after.get(name))
        for name in names
        if before.get(name) != after.get(name)
    }


def completed(old: dict[str, Any]) -> dict[str, Any]:
    """A config's dict, or some of its sections, with the fields that came later, at their defaults.

    A section that is no section now stays as it is.
    """
    hints = typing.get_type_hints(ExperimentConfig)
    sections = {}
    for name, given in old.items():
        sections[name] = given
        with contextlib.suppress(KeyError, TypeError, ValueError):
            if name == "model":
                sections[name] = model_to_dict(model_from_dict(given))
            else:
                sections[name] = to_plain(_section(name, hints[name], given), hints[name])
    return sections


def is_harmless(name: str) -> bool:
    """Whether a run may be continued with another value of this field."""
    section = name.split(".")[0]
    if section == "train":
        return name not in _TRAIN_FIELDS_THAT_MATTER
    return section == "mesh" or name in _OTHER_HARMLESS


def refuse_changes(
    old: dict[str, Any], new: dict[str, Any], where: str, allowed: tuple[str, ...] = ()
) -> None:
    """ValueError naming every field that matters and differs between two configs' dicts."""
    before = {**{name: LATER[name] for name in LATER if name in new}, **completed(old)}
    changed = {
        name: values
        for name, values in differences(before, new).items()
        if name not in allowed and not is_harmless(name)
    }
    if changed:
        listed = "; ".join(
            f"{checks.flag_name(name)} was {before!r}, now {after!r}{_remedy(name, old, new)}"
            for name, (before, after) in changed.items()
        )
        raise ValueError(f"{where} was made with other settings: {listed}")


def _remedy(name: str, old: dict[str, Any], new: dict[str, Any]) -> str:
    """What to do when a schedule that ends with the run got another end by train.steps."""
    if name != "optim.decay_steps" or not (_ends_with_run(old) and _ends_with_run(new)):
        return ""
    return (
        f" (train.steps was {old['train']['steps']}, now {new['train']['steps']}, and a decaying "
        f"schedule ends there; --optim.decay-steps {old['optim']['decay_steps']} keeps its end)"
    )


def _ends_with_run(values: dict[str, Any]) -> bool:
    optim = values["optim"]
    ends = values["train"].get("steps"), optim.get("warmup_steps")
    return None not in ends and optim.get("decay_steps") == max(ends)


def _leaves(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found = []
    for name, value in values.items():
        if isinstance(value, dict):
            found += _leaves(value, f"{prefix}{name}.")
        else:
            found.append((f"{prefix}{name}", value))
    return found


def _section(path: str, kind: Any, given: Any) -> Any:
    """Builds dataclass `kind` from a plain dict; JSON's lists become tuples where declared.

    A `Value` says its class itself.
    """
    if not isinstance(given, dict):
        checks.refuse(path, given, "an object with fields")
    known = [field.name for field in dataclasses.fields(kind) if field.init]
    for name in given if not issubclass(kind, Value) else ():
        if name not in known:
            raise ValueError(
                f"{checks.flag_name(f'{path}.{name}')} is unknown; allowed: {', '.join(known)}"
            )
    return from_plain(given, kind, path)
