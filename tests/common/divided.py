"""Sequences divided among devices: running ops on them, and what they exchange.

`python -m MODULE NAME` runs a test's checks in a process of its own, which has eight CPU devices.
"""

import math
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
from jax.sharding import AxisType, PartitionSpec

TOKENS, WHOLE = PartitionSpec(None, "seq"), PartitionSpec()
# Programs that run a few times are cheaper to run than to optimise.
FLAGS = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
_COLLECTIVE = re.compile(
    r"= (.*?) (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(?:-start)?\("
)


def run_checks(module, name):
    ended = subprocess.run(
        [sys.executable, "-m", module, name],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "XLA_FLAGS": FLAGS},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr[-3000:]
    return ended


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
