"""A trained model at a long context: one full forward pass, or decoding after all of it.

Real text (the corpus of the shipped models, or what the run was validated on), batch of one. The
forward pass gives the logits of the last token, without a cache; decoding takes the text in by
chunks and then times single tokens. Programs are compiled before anything is timed. Each part runs
in a process of its own, whose peak memory is the program's (the host's: not that of a GPU).

Examples:

    python -m experiments.bench.long_context multiscreen-speeches --part forward --output a.json
    python -m experiments.bench.long_context transformer-speeches --part decode --length 20000
    python -m experiments.bench.long_context runs/quickstart --windows rule
"""

import dataclasses
import functools
import json
import resource
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import tyro

from multiscreen_jax import data
from multiscreen_jax.data import DataConfig
from multiscreen_jax.models import Multiscreen, build
from multiscreen_jax.train import one_line_errors, options
from multiscreen_jax.train.trained_run import open_run

PARTS = ("forward", "decode")
# The fields of a Multiscreen that make them so.
WINDOWS = {
    "learned": {},
    "rule": {"infinite_windows": True},
    "infinite": {"infinite_windows": True, "trained_length": 1},
}
_CHUNK = 1024  # tokens taken in at a time before decoding
_DECODED = 64


@dataclass(frozen=True)
class LongContextBench:
    """What to time."""

    model: Annotated[str, tyro.conf.Positional]
    """A shipped model, see `mj.pretrained.names()`, or the folder of a training run."""
    part: str = "forward"
    """forward or decode."""
    length: int = 100_000
    """Tokens of the context."""
    windows: str = "learned"
    """Of a Multiscreen: learned; rule, where those longer than the training length are infinite;
    or infinite, all of them, which is the most that learning can make them cost."""
    output: Path | None = None
    """JSON file for the numbers."""

    def __post_init__(self) -> None:
        if self.part not in PARTS:
            raise ValueError(f"part is {self.part!r}; allowed: {', '.join(PARTS)}")
        if self.windows not in WINDOWS:
            raise ValueError(f"windows is {self.windows!r}; allowed: {', '.join(WINDOWS)}")
        if self.length < 1:
            raise ValueError(f"length is {self.length}; allowed: an integer >= 1")


def run(bench: LongContextBench) -> dict[str, Any]:
    model, params, text = _load(bench.model)
    if WINDOWS[bench.windows]:
        if not isinstance(model, Multiscreen):
            kind = type(model).__name__
            raise ValueError(
                f"--windows {bench.windows} needs a Multiscreen, {bench.model} is a {kind}"
            )
        model = build(dataclasses.replace(model.config, **WINDOWS[bench.windows]))
    text = dataclasses.replace(text, sequence_length=bench.length, batch_size=1)
    tokens = data.open_pipeline(text, "valid").batch(0)["tokens"][:, : bench.length]
    measured = (_forward if bench.part == "forward" else _decode)(model, params, tokens)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    found = {
        **dataclasses.asdict(bench),
        "parameters": sum(x.size for x in jax.tree.leaves(params)),
        **measured,
        "peak_mb": round(peak),
    }
    del found["output"]
    print(json.dumps(found, indent=2))
    if bench.output is not None:
        bench.output.parent.mkdir(parents=True, exist_ok=True)
        bench.output.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return found


def _load(name: str) -> tuple[Any, Any, DataConfig]:
    """(model, parameters, the text it reads)."""
    trained = open_run(name)
    return trained.model, trained.params, trained.readable()


def _forward(model, params, tokens):
    def last_logits(params, tokens):
        hidden, _ = model.apply({"params": params}, tokens, method="trunk")
        return model.apply({"params": params}, method="output_rows") @ hidden[0, -1]

    compiled = jax.jit(last_logits).lower(params, tokens).compile()
    start = time.perf_counter()
    jax.block_until_ready(compiled(params, tokens))
    return {"forward_seconds": time.perf_counter() - start}


def _decode(model, params, tokens):
    length = tokens.shape[1]
    cache = model.init_cache(params, 1, length + _DECODED)
    start_bytes = sum(x.nbytes for x in jax.tree.leaves(cache))

    @functools.partial(jax.jit, donate_argnums=2)  # a cache is written in place
    def step(params, tokens, cache):
        out = model.apply({"params": params}, tokens, cache=cache)
        return jnp.argmax(out.logits[:, -1:], axis=-1).astype(jnp.int32), out.cache

    chunks = [tokens[:, first : first + _CHUNK] for first in range(0, length, _CHUNK)]
    programs = {
        size: step.lower(params, tokens[:, :size], cache).compile()
        for size in {1, *(chunk.shape[1] for chunk in chunks)}
    }
    start = time.perf_counter()
    for chunk in chunks:
        token, cache = programs[chunk.shape[1]](params, chunk, cache)
    jax.block_until_ready(cache)
    prefill = time.perf_counter() - start
    seconds = []
    for _ in range(_DECODED):
        start = time.perf_counter()
        token, cache = programs[1](params, token, cache)
        token.block_until_ready()
        seconds.append(time.perf_counter() - start)
    return {
        "prefill_seconds": prefill,
        "decode_ms": 1e3 * statistics.median(seconds[1:]),
        "cache_mb": start_bytes / 1e6,
    }


def main() -> None:
    with one_line_errors():
        run(options.read(LongContextBench, prog="python -m experiments.bench.long_context"))


if __name__ == "__main__":
    main()
