"""Forward, loss and backward of Multiscreen: ours against PyTorch implementations.

All contenders get the same weights and tokens, float32, one sequence, and must find the same loss.
Each PyTorch implementation runs with glibc's allocator as it is and tuned to keep its pages, and
its best figure counts; ours runs as it is. Examples:

    python -m experiments.bench.training_step
    python -m experiments.bench.training_step --lengths 1024 --threads 2 --name two_threads
    python -m experiments.bench.training_step --dieod ~/multiscreen-pytorch --compiled
    python -m experiments.bench.training_step --lengths --ours-lengths 16384 --remat none
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
    Result,
    Timing,
    best,
    check_same_values,
    run_interleaved,
)
from experiments.bench.inputs import write_weights
from experiments.bench.references import REFERENCES, check_allocators, check_checkouts
from multiscreen_jax.train import one_line_errors, options

# float32 rounding of a mean over thousands of tokens.
LOSS_TOLERANCE = 2e-6
PARTS = {
    "all matrix products by weights, and the loss": "projections",
    "screening of all layers": "screening_op",
}


@dataclass(frozen=True)
class TrainingStepBench:
    """Time one training step of Multiscreen, ours and PyTorch's.

    Attributes:
        lengths: tokens of the sequence, for all contenders.
        ours_lengths: further lengths, for ours alone.
        psi: size of the model: psi layers of psi tiles, model dimension psi^2.
        vocab_size: tokens in the vocabulary.
        remat: what our backward pass keeps. On CPUs keeping each layer's input and what its
            screening returned is fastest: more activations would not fit in the caches, and their
            pages are new in every step.
        dieod: checkout of dieOD/multiscreen-pytorch to compare with.
        hf: checkout of kuroganegames/Multiscreen-HF to compare with.
        exveria: checkout of exveria1015/screening-is-enough-pytorch to compare with.
        pypi: compare with the installed package multiscreen.
        compiled: add dieOD under torch.compile (its first call takes minutes).
        allocators: settings each PyTorch implementation runs with: default, tuned, or "tuned, huge
            pages".
        parts: also time our matrix products and our screening op by themselves.
        timing: how everything is run.
        name: of the CSV files in experiments/bench/results.
    """

    lengths: tuple[int, ...] = (1024, 2048)
    ours_lengths: tuple[int, ...] = ()
    psi: int = 8
    vocab_size: int = 256
    remat: str = "mixer"
    dieod: Path | None = None
    hf: Path | None = None
    exveria: Path | None = None
    pypi: bool = True
    compiled: bool = False
    allocators: tuple[str, ...] = ("default", "tuned")
    parts: bool = True
    timing: Annotated[Timing, tyro.conf.arg(name="")] = dataclasses.field(default_factory=Timing)
    name: str = "training_step"

    def __post_init__(self) -> None:
        check_allocators(self.allocators)
        check_checkouts(dieod=self.dieod, hf=self.hf, exveria=self.exveria)
        if self.compiled and self.dieod is None:
            raise ValueError("compiled needs dieod, the checkout to compile")


def contenders(bench: TrainingStepBench, weights: str, everyone: bool) -> list[Contender]:
    """Ours first, then its parts, then the references."""
    ours = {"factory": "experiments.bench.ours:training_step"}
    found = [Contender("ours", arguments={"weights": weights, "remat": bench.remat}, **ours)]
    if bench.parts:
        for name, function in PARTS.items():
            factory = f"experiments.bench.ours:{function}"
            found.append(Contender(f"ours: {name}", factory, {"weights": weights}))
    if not everyone:
        return found
    factory = "experiments.bench.references:training_step"
    for allocator in bench.allocators:
        for name in references(bench):
            checkout = getattr(bench, name) if name != "pypi" else None
            arguments = {
                "reference": name,
                "weights": weights,
                "checkout": str(checkout.resolve()) if checkout else None,
            }
            found.append(Contender(name, factory, arguments, allocator))
            if name == "dieod" and bench.compiled:
                arguments = {**arguments, "compiled": True}
                found.append(Contender("dieod compiled", factory, arguments, allocator))
    return found


def references(bench: TrainingStepBench) -> list[str]:
    return [name for name in REFERENCES if getattr(bench, name)]


def notes(length: int, results: list[Result]) -> list[str]:
    """The comparison in words."""
    ours = results[0]
    lines = []
    parts = [r for r in results if r.contender.name.startswith("ours: ") and r.runs]
    for part in parts:
        share = part.median("cpu") / ours.median("cpu")
        lines.append(f"T={length}: {part.contender.name[6:]} take {share:.0%} of our step")
    others = [r for r in results if not r.contender.name.startswith("ours")]
    pypi = best([r for r in others if r.contender.name == "pypi"])
    for title, fastest in (("the PyPI package", pypi), ("the best reference", best(others))):
        if fastest is not None and ours.runs:
            cpu, wall = (fastest.median(c) / ours.median(c) for c in ("cpu", "wall"))
            lines.append(
                f"T={length}: {title} ({fastest.contender.label}) "
                f"takes {cpu:.1f} times our CPU time, {wall:.1f} times our wall time"
            )
    return lines


def run(bench: TrainingStepBench) -> None:
    from multiscreen_jax.models import MultiscreenConfig

    config = MultiscreenConfig.from_psi(bench.psi, vocab_size=bench.vocab_size)
    facts, rows, lines = report.machine_facts(), [], []
    sources = sorted({"multiscreen/paper", *(REFERENCES[n].source for n in references(bench))})
    for length in sorted({*bench.lengths, *bench.ours_lengths}):
        print(f"T={length}", file=sys.stderr)
        with tempfile.TemporaryDirectory() as weights:
            write_weights(Path(weights), config, length, sources)
            entrants = contenders(bench, weights, everyone=length in bench.lengths)
            results = run_interleaved(entrants, bench.timing, lambda s: print(s, file=sys.stderr))
        steps = [r for r in results if not r.contender.name.startswith("ours: ")]
        check_same_values(steps, LOSS_TOLERANCE)
        rows += [{"T": length, **report.timing_row(r, results[0])} for r in results]
        lines += notes(length, results)
    setting = f"Psi={bench.psi}, vocabulary {bench.vocab_size}, B=1, float32"
    setting += f", {bench.timing.threads} thread(s), remat {bench.remat}; times in milliseconds"
    report.publish(rows, report.RESULTS / f"{bench.name}.csv", [setting, *lines], facts)


if __name__ == "__main__":
    with one_line_errors():
        run(options.read(TrainingStepBench, prog="python -m experiments.bench.training_step"))
