"""What to change where a step does not fit, computed from what was found.

A line starts with the options to give beside those that were given, or asks for more chips. None is
advised that the command refuses.
"""

import math
from collections.abc import Iterator

from experiments.aot.chips import GIB
from experiments.aot.findings import Findings, check_sizes
from multiscreen_jax.train.config import override

# The compiler packs buffers less than perfectly, and what does not shrink is not known exactly.
_ROOM = 0.95


def advice(found: Findings) -> list[str]:
    """Options that make the step smaller; [] where it fits.

    What fits comes before what is only smaller. Where one sequence is too much for a chip, more of
    `seq` is the first.
    """
    if found.fits or not found.needed:
        return []
    changes = []
    if _fixed(found) < _room(found):
        fewer = _fewer_sequences(found)
        changes += [] if fewer else _shares_of_a_sequence(found)
        changes += _smaller_numbers(found)
        changes += fewer or _shorter_sequences(found)
    return changes + _shares_of_the_state(found)


def _room(found: Findings) -> float:
    return _ROOM * found.topology.chip.usable


def _fixed(found: Findings) -> float:
    """Bytes that no batch makes smaller: gradients are added up in an array like the parameters."""
    return 2 * found.parameter_bytes + found.optimizer_bytes


def _estimate(found: Findings, parts: int, fsdp: int) -> float:
    """Bytes of a chip with the batch in so many parts; as many chips hold the same tokens."""
    rest = max(0, found.needed - _fixed(found))
    state = _fixed(found) * found.mesh["fsdp"] / fsdp
    return state + rest * found.config.train.accumulate / parts


def _rows(found: Findings) -> int:
    """Sequences that a chip, or the chips of `seq` together, work on at a time."""
    mesh, config = found.mesh, found.config
    groups = config.train.accumulate * mesh["data"] * mesh["fsdp"]
    return max(1, config.data.batch_size // groups)


def _smaller_numbers(found: Findings) -> list[str]:
    model, changes = found.config.model, []
    if model.remat != "full":
        changes.append(f"--remat full: keeps each layer's input alone (now {model.remat})")
    if model.dtype == "float32":
        rest = (found.needed - _fixed(found)) / GIB
        changes.append(f"--dtype bfloat16: activations take half of about {rest:.1f} GiB")
    return changes


def _fewer_sequences(found: Findings) -> list[str]:
    """A number of parts that fits."""
    rows = _rows(found)
    for k in _divisors(rows):
        parts = found.config.train.accumulate * k
        size = _estimate(found, parts, found.mesh["fsdp"])
        options = _options(found, parts=parts)
        if options and size <= _room(found):
            each = f"{rows // k} of {rows} sequences at a time on each chip"
            return [f"{options}: {each}, about {size / GIB:.1f} GiB"]
    return []


def _shares_of_a_sequence(found: Findings) -> list[str]:
    """A mesh with more of `seq`, taken from `data` and then `fsdp`: one that fits, or the best."""
    mesh, smallest = found.mesh, None
    for k in _divisors(mesh["data"] * mesh["fsdp"]):
        copies = math.gcd(mesh["data"], k)
        sizes = {
            **mesh,
            "data": mesh["data"] // copies,
            "fsdp": mesh["fsdp"] * copies // k,
            "seq": mesh["seq"] * k,
        }
        # The chips that share a sequence have one at a time.
        parts = found.config.train.accumulate * _rows(found) * k
        size = _estimate(found, parts, sizes["fsdp"])
        options = _options(found, mesh=sizes, parts=parts)
        if options and (smallest is None or size < smallest[0]):
            smallest = size, sizes["seq"], options
        if smallest and smallest[0] <= _room(found):
            break
    if smallest is None:
        return []
    size, seq, options = smallest
    verdict = "" if size <= _room(found) else ", still too much"
    return [
        f"{options}: one sequence at a time on {seq} chips, about {size / GIB:.1f} GiB{verdict}"
    ]


def _shorter_sequences(found: Findings) -> list[str]:
    """A length that fits, with as many tokens a step and one sequence at a time."""
    length = found.config.data.sequence_length
    for k in _divisors(length):
        parts = found.config.train.accumulate * _rows(found) * k
        size = _estimate(found, parts, found.mesh["fsdp"])
        options = _options(found, length=length // k, parts=parts)
        if options and size <= _room(found):
            return [f"{options}: as many tokens in shorter sequences, about {size / GIB:.1f} GiB"]
    return []


def _shares_of_the_state(found: Findings) -> list[str]:
    changes, fixed, mesh = [], _fixed(found), found.mesh
    sizes = {**mesh, "data": 1, "fsdp": mesh["data"] * mesh["fsdp"]}
    options = _options(found, mesh=sizes)
    if options:
        saved = fixed * (1 - 1 / mesh["data"])
        fixed -= saved
        less = f"{saved / GIB:.1f} GiB less on each chip"
        changes.append(f"{options}: no copies of the state, {less}")
    if fixed >= _room(found):
        more = -(-fixed // _room(found))
        changes.append(
            f"{more:.0f} times the chips, all in fsdp: parameters, gradients and optimizer state "
            f"alone are {fixed / GIB:.1f} GiB on each chip"
        )
    return changes


def _options(
    found: Findings,
    mesh: dict[str, int] | None = None,
    length: int | None = None,
    parts: int | None = None,
) -> str:
    """The options of a change; "" where nothing changes or the command would refuse it."""
    data, given = found.config.data, found.config.train.accumulate
    tokens = data.batch_size * data.sequence_length
    mesh, length, parts = mesh or found.mesh, length or data.sequence_length, parts or given
    try:
        changed = override(
            found.config,
            data={"sequence_length": length, "batch_size": tokens // length},
            train={"accumulate": parts},
        )
        check_sizes(changed, mesh, found.topology)
    except ValueError:
        return ""
    options = []
    if mesh != found.mesh:
        sizes = ",".join(f"{axis}={size}" for axis, size in mesh.items() if size > 1)
        options.append(f"--mesh {sizes}")
    if length != data.sequence_length:
        options.append(f"--length {length} --batch-tokens {tokens}")
    if parts != given:
        options.append(f"--accumulate {parts}")
    return " ".join(options)


def _divisors(number: int) -> Iterator[int]:
    """Those above 1, ascending."""
    return (k for k in range(2, number + 1) if number % k == 0)
