"""Settings that only name places: files may have moved since a run was started."""

import glob
from pathlib import Path
from typing import Any

from multiscreen_jax.data.sources import NAMED
from multiscreen_jax.paths import expanded_path

# Compared by what lies there, where that is known, and not as strings.
_PLACES = ("data.source", "data.valid_source", "data.tokenizer", "train.init_from")


def located(path: str, started_in: str | None = None) -> str:
    """A path of a run's config as it is to be read from the current folder.

    Args:
      path: a file, folder or glob, or the name of a source such as "sotu".
      started_in: the folder that a relative path was meant from; None where it is not known.

    That folder comes before the current one. Where neither has the path, it is given as it was
    meant, so that a message names where was looked.
    """
    here, given = Path.cwd(), expanded_path(path)
    if path in NAMED or given.is_absolute():
        return path
    meant = here if started_in is None else Path(started_in)
    for folder in (meant, here):
        if _exists(folder / given):
            return path if folder == here else str(folder / given)
    return str(meant / given)


def moved(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Dotted names of the settings in two configs' dicts that name a place, and not the same."""
    found = []
    for name in _PLACES:
        section, field = name.split(".")
        before, after = old[section].get(field), new[section].get(field)
        both = isinstance(before, str) and isinstance(after, str) and before != after
        # Names of tokenizers are no places.
        if both and (
            field != "tokenizer" or (before.endswith(".json") and after.endswith(".json"))
        ):
            found.append(name)
    return found


def is_same(before: str, after: str, started_in: str | None) -> bool:
    """Whether two paths, the first meant from another folder, lead to one place."""
    return expanded_path(located(before, started_in)).resolve() == expanded_path(after).resolve()


def _exists(path: Path) -> bool:
    return path.exists() or bool(glob.glob(str(path), recursive=True))
