"""Sequences divided among devices: ops on them, and what they exchange."""

import math
import re

import jax
from jax.sharding import AxisType, PartitionSpec

TOKENS, WHOLE = PartitionSpec(None, "seq"), PartitionSpec()
_COLLECTIVE = re.compile(
    r"= (.*?) (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(?:-start)?\("
)


def divide(op, devices, in_specs, out_specs):
    mesh = jax.make_mesh(
        (devices,), ("seq",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices]
    )
    return jax.shard_map(op, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def check_exchanged(compiled, gathered, lengths):
    """At most `gathered` numbers are gathered, and nothing that is exchanged has a token axis.

    Args:
        lengths: of the token axis, whole and divided; no other axis may be as long.
    """
    total = 0
    for shapes, kind in _COLLECTIVE.findall(compiled.as_text()):
        for dims in re.findall(r"\[([\d,]*)\]", shapes):
            dims = [int(dim) for dim in dims.split(",") if dim]
            assert not set(dims) & set(lengths), f"{kind} of tokens: {shapes}"
            total += math.prod(dims) * (kind == "all-gather")
    assert 0 < total <= gathered, f"{total} numbers are gathered, allowed {gathered}"
