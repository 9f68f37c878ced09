"""Continue a prompt with a trained model; the text appears as it is made.

Examples:

    python -m experiments.generate runs/quickstart --prompt "My fellow citizens"
    python -m experiments.generate runs/quickstart --prompt "We" --temperature 0
    python -m experiments.generate runs/quickstart --prompt "We" --top-p 0.95 --seed 3
    python -m experiments.generate multiscreen-speeches --prompt "My fellow citizens"
"""

from experiments.interrupt import end_on_interrupt

if __name__ == "__main__":  # before the imports, which take seconds
    end_on_interrupt()

import dataclasses
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import jax
import numpy as np
import tyro

from multiscreen_jax.data import Tokenizer
from multiscreen_jax.generation import stream
from multiscreen_jax.models import Multiscreen, build
from multiscreen_jax.train import checks, one_line_errors, options
from multiscreen_jax.train.trained_run import open_run

PROGRAM = "python -m experiments.generate"


def _optional(metavar: str, default: str, kind: type) -> object:
    hint = tyro.conf.arg(metavar=metavar, help_behavior_hint=f"(default: {default})")
    return Annotated[kind | None, hint]


@dataclass(frozen=True)
class GenerateConfig:
    """Settings of one continuation."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN_DIR")]
    """Output folder of a training run (or one checkpoint's folder in it), or a shipped model."""
    prompt: str = ""
    """Text to continue; empty starts a new document."""
    max_new_tokens: int = 200
    """Stop after so many tokens."""
    temperature: float = 0.8
    """0 takes the likeliest token every time; higher is more varied."""
    top_k: _optional("INT", "no limit", int) = None
    """Choose among so many of the likeliest tokens."""
    top_p: _optional("FLOAT", "no limit", float) = None
    """Choose among the likeliest tokens whose probabilities reach this sum."""
    seed: int = 0
    """Another seed, another text."""
    past_end: bool = False
    """Go on when the model ends the document."""
    step: _optional("INT", "newest", int) = None
    """Which checkpoint."""
    code: _optional("FILE.py", "none", str) = None
    """Python file the run was trained from, which is run; its copy is RUN_DIR/code.py."""
    infinite_windows: bool = False
    """Multiscreen's inference rule: windows longer than the training length become infinite."""


def prompt_ids(tokenizer: Tokenizer, prompt: str) -> np.ndarray:
    """Tokens of a prompt; an empty one is the end of the document before."""
    if prompt:
        try:
            return np.asarray(tokenizer.encode(prompt), np.int32)
        except ValueError as error:
            raise ValueError(f"--prompt: {error}") from None
    if tokenizer.eos_id is None:
        raise ValueError(
            f"--prompt is empty; the tokenizer {tokenizer.name!r} has no end-of-document token to "
            "start from, so give some text"
        )
    return np.asarray([tokenizer.eos_id], np.int32)


def run(config: GenerateConfig) -> str:
    """Prints prompt and continuation to standard output, and returns the continuation."""
    checks.text("--prompt", config.prompt)
    checks.integer("--seed", config.seed, 0, checks.LARGEST_SEED)
    trained = open_run(config.run, config.step, config.code)
    model, tokenizer = trained.model, trained.tokenizer
    if config.infinite_windows:
        if not isinstance(model, Multiscreen):
            raise ValueError(
                f"--infinite-windows needs a Multiscreen run, {config.run} is a "
                f"{type(model).__name__}"
            )
        model = build(dataclasses.replace(model.config, infinite_windows=True))
    ends = () if config.past_end or tokenizer.eos_id is None else (tokenizer.eos_id,)
    prompt = prompt_ids(tokenizer, config.prompt)
    steps = stream(
        model,
        trained.params,
        prompt,
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        key=jax.random.key(config.seed),
        top_k=config.top_k,
        top_p=config.top_p,
        stop_tokens=ends,
        vocab_limit=tokenizer.vocab_size,
    )
    print(f"[{trained.title}]", file=sys.stderr)
    print(config.prompt, end="", flush=True)
    times: list[float] = []

    def shown_tokens() -> Iterator[int]:
        for (token,) in steps:
            times.append(time.perf_counter())
            if int(token) not in ends:
                yield int(token)

    parts = []
    for part in tokenizer.decode_stream(shown_tokens(), context=prompt):
        print(part, end="", flush=True)
        parts.append(part)
    print(flush=True)
    if len(times) > 2:  # the first two tokens wait for compilation
        rate = (len(times) - 2) / (times[-1] - times[1])
        print(f"[{len(times)} tokens, {rate:.0f} per second]", file=sys.stderr)
    return "".join(parts)


def main() -> None:
    """Parses the command line and generates."""
    with one_line_errors():
        run(
            options.read(
                GenerateConfig,
                prog=PROGRAM,
                description=__doc__,
                config=(tyro.conf.FlagCreatePairsOff,),
            )
        )


if __name__ == "__main__":
    main()
