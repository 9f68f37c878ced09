"""What to change where a step does not fit, computed from what was found."""

from experiments.aot.chips import GIB
from experiments.aot.findings import Findings

# The compiler packs buffers less than perfectly, and what does not shrink is not known exactly.
_ROOM = 0.95


def advice(found: Findings) -> list[str]:
    """Options that make the step smaller, the cheapest first; [] where it fits."""
    if found.fits or not found.needed:
        return []
    room = _ROOM * found.topology.chip.usable
    state = found.parameter_bytes + found.optimizer_bytes
    # Gradients are added up in an array of the parameters' size.
    fixed = state + found.parameter_bytes
    rest = max(0, found.needed - fixed)
    changes = []
    if fixed < room:
        changes += _activations(found, fixed, rest, room)
    data, fsdp = found.mesh["data"], found.mesh["fsdp"]
    if data > 1:
        saved = fixed * (1 - 1 / data) / GIB
        changes.append(
            f"--mesh fsdp={data * fsdp}: no copies of the state, {saved:.1f} GiB less on each chip"
        )
    if fixed >= room:
        more = -(-fixed // room)
        changes.append(
            f"{more:.0f} times the chips, all in fsdp: parameters, gradients and optimizer state "
            f"alone are {fixed / GIB:.1f} GiB on each chip"
        )
    return changes


def _activations(found: Findings, fixed: float, rest: float, room: float) -> list[str]:
    config, mesh = found.config, found.mesh
    changes = []
    if config.model.remat != "full":
        changes.append(f"--remat full (now {config.model.remat}): keeps each layer's input alone")
    if config.model.dtype == "float32":
        changes.append(f"--dtype bfloat16: activations take half of about {rest / GIB:.1f} GiB")
    parts = config.train.accumulate
    rows = config.data.batch_size // (parts * mesh["data"] * mesh["fsdp"])
    enough = [k for k in range(2, rows + 1) if rows % k == 0 and fixed + rest / k <= room]
    if enough:
        estimate = (fixed + rest / enough[0]) / GIB
        changes.append(
            f"--accumulate {parts * enough[0]}: {rows // enough[0]} of {rows} sequences at a time "
            f"on each chip, about {estimate:.1f} GiB"
        )
    elif rows == 1:
        tokens = config.data.sequence_length * room / (fixed + rest)
        changes.append(
            f"--length {2 ** int(tokens).bit_length() // 2} or a mesh with model > 1: one sequence "
            "is already all that a chip holds"
        )
    else:
        changes.append(
            f"--accumulate {parts * rows}: one of {rows} sequences at a time on each chip, about "
            f"{(fixed + rest / rows) / GIB:.1f} GiB, still too much: shorter ones too"
        )
    return changes
