"""One-token decode of Multiscreen with a long cache: ours against PyTorch implementations.

Caches are filled with the same random unit entries instead of a prompt, so that contenders must
find the same logit. The second table follows ours alone through growing contexts: with finite
windows neither the time nor the bytes of the cache may depend on them. Examples:

    python -m experiments.bench.decode --dieod ~/multiscreen-pytorch --hf ~/Multiscreen-HF
    python -m experiments.bench.decode --contexts 1024 65536
"""

import dataclasses
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from experiments.bench import report
from experiments.bench.harness import (
    Contender,
    Timing,
    best,
    check_same_values,
    run_interleaved,
)
from experiments.bench.inputs import write_weights
from experiments.bench.references import REFERENCES, check_allocators, check_checkouts
from multiscreen_jax.train import one_line_errors, options

LOGIT_TOLERANCE = 1e-4
OUR_REPEATS = 50
THEIR_REPEATS = 3


@dataclass(frozen=True)
class DecodeBench:
    """Time one-token decode with a filled cache, ours and PyTorch's.

    Attributes:
        context: tokens in the cache when comparing with PyTorch; ours has room for twice as many.
        contexts: tokens in the cache, for ours alone.
        psi: size of the model: psi layers of psi tiles, model dimension psi^2.
        vocab_size: tokens in the vocabulary.
        dieod: checkout of dieOD/multiscreen-pytorch to compare with.
        hf: checkout of kuroganegames/Multiscreen-HF to compare with.
        allocators: settings each PyTorch implementation runs with: default, tuned, or "tuned, huge
            pages".
        timing: how everything is run.
        name: of the CSV files in experiments/bench/results; the second one adds _contexts.
    """

    context: int = 16384
    contexts: tuple[int, ...] = (1024, 4096, 16384, 65536, 262144, 1048576)
    psi: int = 8
    vocab_size: int = 256
    dieod: Path | None = None
    hf: Path | None = None
    allocators: tuple[str, ...] = ("default", "tuned")
    timing: Annotated[Timing, tyro.conf.arg(name="")] = dataclasses.field(default_factory=Timing)
    name: str = "decode"

    def __post_init__(self) -> None:
        check_allocators(self.allocators)
        check_checkouts(dieod=self.dieod, hf=self.hf)


def ours(weights: str, context: int) -> Contender:
    arguments = {"weights": weights, "context": context, "max_length": 2 * context}
    return Contender(
        "ours",
        "experiments.bench.ours:decode",
        {**arguments, "repeats": OUR_REPEATS},
        repeats=OUR_REPEATS,
    )


def theirs(bench: DecodeBench, weights: str, reference: str, allocator: str) -> Contender:
    arguments = {
        "reference": reference,
        "weights": weights,
        "context": bench.context,
        "checkout": str(getattr(bench, reference).resolve()),
        "repeats": THEIR_REPEATS,
    }
    factory = "experiments.bench.references:decode"
    return Contender(reference, factory, arguments, allocator, THEIR_REPEATS)


def compare(bench: DecodeBench, weights: str, references: list[str], facts: list[str]) -> None:
    entrants = [ours(weights, bench.context)]
    for allocator in bench.allocators:
        entrants += [theirs(bench, weights, name, allocator) for name in references]
    results = run_interleaved(entrants, bench.timing, lambda s: print(s, file=sys.stderr))
    check_same_values(results, LOGIT_TOLERANCE)
    rows = [{"context": bench.context, **report.timing_row(r, results[0])} for r in results]
    for row, result in zip(rows, results, strict=True):
        row["cache bytes"] = result.facts.get("cache bytes")
    notes = [setting(bench)]
    fastest = best(results[1:])
    if fastest is not None and results[0].runs:
        cpu, wall = (fastest.median(c) / results[0].median(c) for c in ("cpu", "wall"))
        notes.append(
            f"the best reference ({fastest.contender.label}) takes {cpu:.1f} times our CPU time, "
            f"{wall:.1f} times our wall time"
        )
    report.publish(rows, report.RESULTS / f"{bench.name}.csv", notes, facts)


def follow(bench: DecodeBench, weights: str, facts: list[str]) -> None:
    entrants = [ours(weights, context) for context in bench.contexts]
    results = run_interleaved(entrants, bench.timing, lambda s: print(s, file=sys.stderr))
    rows = []
    for context, result in zip(bench.contexts, results, strict=True):
        row = report.timing_row(result, results[0])
        rows.append({"context": context, **row, "cache bytes": result.facts.get("cache bytes")})
    name = f"{bench.name}_contexts.csv"
    report.publish(rows, report.RESULTS / name, [setting(bench)], facts)


def setting(bench: DecodeBench) -> str:
    return (
        f"Psi={bench.psi}, vocabulary {bench.vocab_size}, B=1, float32, initial windows, "
        f"{bench.timing.threads} thread(s); milliseconds per token"
    )


def run(bench: DecodeBench) -> None:
    from multiscreen_jax.models import MultiscreenConfig

    config = MultiscreenConfig.from_psi(bench.psi, vocab_size=bench.vocab_size)
    references = [name for name in ("dieod", "hf") if getattr(bench, name)]
    sources = sorted({"multiscreen/paper", *(REFERENCES[name].source for name in references)})
    facts = report.machine_facts()
    with tempfile.TemporaryDirectory() as weights:
        write_weights(Path(weights), config, 1, sources)
        compare(bench, weights, references, facts)
        if bench.contexts:
            follow(bench, weights, facts)


if __name__ == "__main__":
    with one_line_errors():
        run(options.read(DecodeBench, prog="python -m experiments.bench.decode"))
