"""What eight devices say: `python -m tests.train.collectives NAME ROWS LENGTH [MESH PARTS]`.

One line for each kind and shape that a step of the named config exchanges on eight CPU devices:
how often one device takes part in a step, the kind, the result's shape, how many take part
together. Only shapes are needed: nothing is allocated, whatever the model's size.
"""

import sys
from collections import Counter

import jax

from experiments.aot import hlo
from experiments.aot.collectives import collectives
from experiments.aot.program import Program, compile_step, trace_step
from experiments.aot_check import find_config, parse_mesh
from multiscreen_jax.sharding import make_mesh
from multiscreen_jax.train import override


def main(name: str, rows: str, length: str, mesh: str = "fsdp=8", parts: str = "1") -> None:
    config = override(
        find_config(name),
        data={"batch_size": int(rows), "sequence_length": int(length)},
        train={"accumulate": int(parts)},
    )
    where = make_mesh(**{"data": 1, **parse_mesh(mesh)})
    program = compile_step(trace_step(config, where), where)
    assert isinstance(program, Program)
    counts = Counter()
    for one in collectives(hlo.parse(program.text), len(jax.devices())):
        counts[f"{one.kind} {one.shape} of {one.chips}"] += one.times
    for line in sorted(counts):
        print(f"{counts[line]:4} x {line}")


if __name__ == "__main__":
    main(*sys.argv[1:])
