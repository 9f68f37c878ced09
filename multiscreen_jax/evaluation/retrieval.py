"""Retrieval on ABCDigits: exact match over a grid of context lengths and depths.

A prompt is hundreds of lines `X=dddddd` and ends in `X=` of a letter that was shown once, at a
depth of its own. (Multiscreen paper, Fig. 6: 2^12 to 2^17 GPT-2 tokens, depths .1 .3 .5 .7 .9,
1000 instances per cell, greedy)
"""

import csv
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import numpy as np

from multiscreen_jax.data import Tokenizer
from multiscreen_jax.data.abcdigits import make_by_lines, make_by_tokens, split_answer

DEPTHS = (0.1, 0.3, 0.5, 0.7, 0.9)
UNITS = ("tokens", "lines")

Generate = Callable[..., Any]
Ask = Callable[[int, float], Sequence[tuple[str, str]]]


def retrieval_grid(
    model: nn.Module,
    params: Any,
    tokenizer: Tokenizer,
    lengths: Sequence[int],
    depths: Sequence[float] = DEPTHS,
    *,
    unit: str = "tokens",
    trials: int = 100,
    digits: int = 6,
    batch_size: int = 16,
    generate: Generate | None = None,
    progress: Callable[[dict[str, Any]], None] | None = None,
) -> list[dict[str, Any]]:
    """Greedy answers to ABCDigits prompts, compared with the numbers as text.

    Args:
      model, params: any of this library's models.
      tokenizer: of the model; it must know digits, capital letters, "=" and the newline.
      lengths: context lengths in `unit`s: "tokens" of the tokenizer, or "lines".
      depths: where the asked-for line stands, as a share of the lines, each in [0, 1].
      trials: prompts per cell. All depths of a length ask the same questions; fewer trials are a
        prefix of more.
      digits: digits of every number.
      batch_size: prompts decoded together; results do not depend on it.
      generate: in place of `mj.generate`, a function of (model, params, prompts, max_new_tokens)
        that returns the new tokens of each prompt.
      progress: called with each row when it is done.

    Returns:
      One row per cell, lengths outermost: length, unit, depth, prompt_tokens (of the longest
      prompt), trials, correct, exact_match (a share).

    Raises:
      ValueError: an empty or bad list, a length too short for the generator.
    """
    if unit not in UNITS:
        raise ValueError(f"unit is {unit!r}; allowed: {', '.join(UNITS)}")

    def ask(length: int, depth: float) -> list[tuple[str, str]]:
        texts = _texts(tokenizer, length, depth, unit, digits, trials)
        return [split_answer(text, digits) for text in texts]

    check_grid(lengths, depths, trials, batch_size)
    return score_grid(
        model,
        params,
        tokenizer,
        [{"length": n, "unit": unit, "depth": depth} for n in lengths for depth in depths],
        ask,
        batch_size,
        generate,
        progress,
    )


def score_grid(
    model: nn.Module,
    params: Any,
    tokenizer: Tokenizer,
    cells: Sequence[dict[str, Any]],
    ask: Ask,
    batch_size: int,
    generate: Generate | None = None,
    progress: Callable[[dict[str, Any]], None] | None = None,
) -> list[dict[str, Any]]:
    """Greedy answers to the questions of every cell, compared with the right ones as text.

    Args:
      cells: what to say of each cell, at least its length and depth.
      ask: (length, depth) -> the (prompt, answer) pairs of a cell. Where an answer begins with a
        space, space before what the model says does not matter.
      model, params, tokenizer, batch_size, generate, progress: as for `retrieval_grid`.

    Returns:
      One row per cell: what `cells` says of it, prompt_tokens, trials, correct, exact_match.
    """
    rows = []
    for cell in cells:
        questions = ask(cell["length"], cell["depth"])
        row = _cell(model, params, tokenizer, questions, batch_size, generate)
        rows.append({**cell, **row})
        if progress is not None:
            progress(rows[-1])
    return rows


def write_csv(rows: Sequence[dict[str, Any]], path: str | Path) -> None:
    """Rows with equal keys as a CSV file; numbers are written so that they read back exactly."""
    with Path(path).open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def check_grid(
    lengths: Sequence[int], depths: Sequence[float], trials: int, batch_size: int
) -> None:
    """One-line ValueError unless a grid has cells, and cells have questions."""
    for name, values in (("lengths", lengths), ("depths", depths)):
        if len(values) == 0:
            raise ValueError(f"{name} is empty; allowed: at least one")
    for name, value in (("trials", trials), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name} is {value}; allowed: an integer >= 1")


def _texts(
    tokenizer: Tokenizer, length: int, depth: float, unit: str, digits: int, trials: int
) -> list[str]:
    def count(line: str) -> int:
        return len(tokenizer.encode(line))

    try:
        if unit == "lines":
            return make_by_lines(length, depth, digits, trials)
        return make_by_tokens(length, depth, count, digits, trials)
    except ValueError as error:  # which names the generator's arguments, not ours
        raise ValueError(f"lengths {length}, depths {depth}, digits {digits}: {error}") from None


def _cell(
    model: nn.Module,
    params: Any,
    tokenizer: Tokenizer,
    questions: Sequence[tuple[str, str]],
    batch_size: int,
    generate: Generate | None,
) -> dict[str, Any]:
    prompts, answers = zip(*questions, strict=True)
    encoded = [np.asarray(tokenizer.encode(prompt), np.int32) for prompt in prompts]
    # A token carries at least one character: so many tokens always hold the answer.
    count = max(map(len, answers))
    correct = 0
    for first, batch in _in_batches(encoded, batch_size):
        new = _generate(generate, model, params, batch, count)
        for tokens, answer in zip(new, answers[first:], strict=False):
            # A model may have more tokens than the tokenizer knows.
            known = tokens[np.cumsum(tokens >= tokenizer.vocab_size) == 0]
            correct += _is_answer(tokenizer.decode(known), answer)
    return {
        "prompt_tokens": max(map(len, encoded)),
        "trials": len(questions),
        "correct": correct,
        "exact_match": correct / len(questions),
    }


def _is_answer(text: str, answer: str) -> bool:
    if answer.startswith(" "):  # which some tokenizers drop when they decode
        return text.lstrip().startswith(answer.lstrip())
    return text.startswith(answer)


def _in_batches(
    prompts: list[np.ndarray], batch_size: int
) -> Iterator[tuple[int, list[np.ndarray]]]:
    """(index of the first, prompts); the last batch is filled up, so that all have one shape."""
    size = min(batch_size, len(prompts))
    for first in range(0, len(prompts), size):
        batch = prompts[first : first + size]
        yield first, batch + [prompts[-1]] * (size - len(batch))


def _generate(
    generate: Generate | None, model: nn.Module, params: Any, prompts: list[np.ndarray], count: int
) -> list[np.ndarray]:
    if generate is None:
        from multiscreen_jax import generate as library_generate

        generate = library_generate
    return [np.asarray(row) for row in generate(model, params, prompts, max_new_tokens=count)]
