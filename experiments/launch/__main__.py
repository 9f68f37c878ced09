"""Starts, follows and ends runs on pods and clusters; every command is printed before it runs.

    python -m experiments.launch tpu create --name pod --zone us-east5-a --accelerator v5p-256
    python -m experiments.launch tpu run --name pod --zone us-east5-a -- NAME [training options]

--dry-run, anywhere before --, only prints. README.md in this folder is the guide.
"""

from __future__ import annotations

import functools
import sys
from types import ModuleType

from experiments.launch import gke, slurm, tpu
from experiments.launch.commands import Command, run_all
from multiscreen_jax.train import options

PROGRAM = "python -m experiments.launch"
PLATFORMS: dict[str, tuple[ModuleType, tuple[str, ...]]] = {
    "tpu": (tpu, ("create", "status", "install", "mount", "run", "logs", "stop", "delete")),
    "gke": (gke, ("create", "status", "install", "mount", "run", "logs", "stop", "delete")),
    "slurm": (slurm, ("run", "status", "logs", "stop", "delete")),
}


def plan(words: list[str], training: list[str]) -> list[Command]:
    """The commands behind a command line (without --dry-run): what is before --, and after it.

    Raises:
      ValueError: one line on what cannot be started.
      SystemExit: 0 after --help, 2 for options that do not exist or are missing.
    """
    if not words or words[0] in ("-h", "--help"):
        print(f"{__doc__}\nusage: {PROGRAM} {{{','.join(PLATFORMS)}}} COMMAND [--help]")
        raise SystemExit(0 if words else 2)
    platform, *rest = words
    if platform not in PLATFORMS:
        raise ValueError(f"platform is {platform!r}; allowed: {', '.join(PLATFORMS)}")
    module, names = PLATFORMS[platform]
    if training and rest[:1] != ["run"]:
        raise ValueError(f"-- {training[0]} is given; allowed: only after {platform} run")
    functions = {name: getattr(module, name) for name in names}
    functions["run"] = functools.partial(functions["run"], training=tuple(training))
    return options.subcommands(
        functions, prog=f"{PROGRAM} {platform}", description=module.__doc__, args=rest
    )


def main() -> None:
    words, training = sys.argv[1:], []
    if "--" in words:
        place = words.index("--")
        words, training = words[:place], words[place + 1 :]
    dry_run = "--dry-run" in words
    words = [word for word in words if word != "--dry-run"]
    try:
        run_all(plan(words, training), dry_run)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, ValueError) else 1)


if __name__ == "__main__":
    main()
