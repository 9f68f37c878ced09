"""Whether what is trained now is what a checkpoint's run was training."""

from pathlib import Path
from typing import Any

from multiscreen_jax.train import config_json, manifest, places, reading, run_tokenizer
from multiscreen_jax.train.manifest import DamagedCheckpoint


def refuse_other(
    run: dict[str, Any], now: dict[str, Any], origin: dict[str, Any], fingerprint: str, where: str
) -> None:
    """ValueError in one line unless a run may go on from a checkpoint.

    Settings that name places may differ where what lies there does not.

    Args:
      run: the checkpoint's run facts.
      now, origin, fingerprint: config as a dict, origin (see `setup.Run`) and data now.
      where: the checkpoint, for the message.
    """
    before = run["config"]
    moved = places.moved(before, now)
    allowed = [name for name in moved if _may_differ(name, run, now)]
    if now["train"]["init_from"] is not None:
        # Of a continued run the checkpoint knows the length that was inherited.
        allowed.append("model.trained_length")
    config_json.refuse_changes(before, now, where, tuple(allowed))
    if (known := run.get("tokenizer")) is not None:
        run_tokenizer.refuse_other(
            known,
            origin["tokenizer"],
            f"{where} was made with other data, of tokenizer",
            "data.source is read with",
        )
    if run["data_fingerprint"] != fingerprint:
        old, new = before["data"]["source"], now["data"]["source"]
        other = f" (it was {old!r}, and is {new!r})" if old != new else ""
        raise ValueError(f"{where} was made with other data: what data.source reads changed{other}")
    valid = run.get("valid_fingerprint"), origin["valid_fingerprint"]
    if None not in valid and valid[0] != valid[1]:
        raise ValueError(f"{where} was made with other data: what data.valid-source reads changed")
    if now["train"]["steps"] < run["step"]:
        raise ValueError(
            f"train.steps is {now['train']['steps']}; {where} has taken more; allowed: at least "
            f"{run['step']}, or another train.output-dir"
        )


def _may_differ(name: str, run: dict[str, Any], now: dict[str, Any]) -> bool:
    """Whether what lies at a place is compared, or known to be the same."""
    if name in ("data.source", "data.tokenizer"):
        return True  # the fingerprints of data and tokenizer are compared in any case
    section, field = name.split(".")
    before, after = run["config"][section][field], now[section][field]
    if places.is_same(before, after, run.get("working_directory")):
        return True
    if name == "data.valid_source":
        return run.get("valid_fingerprint") is not None  # compared with what is there now
    start = run.get("inherited")
    return start is not None and _holds(after, start)


def _holds(path: str, start: dict[str, Any]) -> bool:
    """Whether the checkpoint that a run started from is at a path now."""
    folder: Path = reading.checkpoints_in(path)[0] / str(start.get("step"))
    try:
        return manifest.seal_of(folder) == start.get("seal")
    except DamagedCheckpoint:
        return False
