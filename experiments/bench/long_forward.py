"""A forward pass over a very long text: Multiscreen against the Transformer it is compared with.

Both are this library's, of the sizes the paper pairs: the smallest Multiscreen and the next larger
Transformer. Trunk over all tokens without a cache, and the logits of the last one, as a reader of
one long document needs them. Multiscreen runs twice: with its initial windows, all finite, and
with a tenth of its tiles at an infinite window, the share that training leaves at most according
to the paper. Programs are compiled before anything is timed. Examples:

    python -m experiments.bench.long_forward
    python -m experiments.bench.long_forward --length 20000 --threads 2
"""

import dataclasses
import sys
from dataclasses import dataclass
from typing import Annotated

import tyro

from experiments.bench import report
from experiments.bench.harness import Contender, Timing, run_interleaved
from multiscreen_jax.models.registry import config_for
from multiscreen_jax.train import one_line_errors, options

FACTORY = "experiments.bench.ours:long_forward"


@dataclass(frozen=True)
class LongForwardBench:
    """Time a forward pass over a long text, Multiscreen and Transformer.

    Attributes:
        length: tokens of the text.
        multiscreen: preset of the Multiscreen.
        transformer: preset of the Transformer, of the nearest larger size.
        vocab_size: tokens in the vocabulary.
        infinite_tiles: share of tiles at an infinite window in Multiscreen's second run.
        timing: how everything is run.
        name: of the CSV file in experiments/bench/results.
    """

    length: int = 100_000
    multiscreen: str = "multiscreen-4m"
    transformer: str = "transformer-8m"
    vocab_size: int = 50257
    infinite_tiles: float = 0.1
    timing: Annotated[Timing, tyro.conf.arg(name="")] = dataclasses.field(
        default_factory=lambda: Timing(rounds=3, warmups=0, threads=2)
    )
    name: str = "long_forward"

    def __post_init__(self) -> None:
        for preset in (self.multiscreen, self.transformer):
            config_for(preset)
        if not 0 <= self.infinite_tiles <= 1:
            raise ValueError(f"infinite_tiles must be in [0, 1], got {self.infinite_tiles}")


def run(bench: LongForwardBench) -> None:
    shared = {"vocab_size": bench.vocab_size, "length": bench.length}
    some = {"preset": bench.multiscreen, "infinite_tiles": bench.infinite_tiles, **shared}
    entrants = [
        Contender(bench.multiscreen, FACTORY, {"preset": bench.multiscreen, **shared}),
        Contender(f"{bench.multiscreen}, {bench.infinite_tiles:.0%} infinite", FACTORY, some),
        Contender(bench.transformer, FACTORY, {"preset": bench.transformer, **shared}),
    ]
    facts = report.machine_facts()
    results = run_interleaved(entrants, bench.timing, lambda s: print(s, file=sys.stderr))
    rows, notes = [], [f"T={bench.length}, B=1, float32, {bench.timing.threads} thread(s)"]
    for result in results:
        row = report.timing_row(result)
        row["parameters"] = result.facts.get("parameters")
        row["tokens/s"] = bench.length / result.median("wall")
        rows.append(row)
    for result in results[:2]:
        cpu, wall = (results[2].median(c) / result.median(c) for c in ("cpu", "wall"))
        notes.append(
            f"{bench.transformer} takes {wall:.1f} times the wall time of {result.contender.name}, "
            f"{cpu:.1f} times its CPU time"
        )
    report.publish(rows, report.RESULTS / f"{bench.name}.csv", notes, facts)


if __name__ == "__main__":
    with one_line_errors():
        run(options.read(LongForwardBench, prog="python -m experiments.bench.long_forward"))
