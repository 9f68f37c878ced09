"""Needles in a haystack: exact match over a grid of context lengths and depths.

A prompt is a stretch of real books with magic numbers hidden in it, and asks for one of them
(see `data.needle`; RULER's single-key and multi-key tasks, arXiv:2404.06654).
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn

from multiscreen_jax.data import Tokenizer
from multiscreen_jax.data.needle import Haystack, make_question
from multiscreen_jax.evaluation.retrieval import DEPTHS, Generate, check_grid, score_grid


def needle_grid(
    model: nn.Module,
    params: Any,
    tokenizer: Tokenizer,
    haystack: Haystack,
    lengths: Sequence[int],
    depths: Sequence[float] = DEPTHS,
    *,
    keys: int = 1,
    trials: int = 100,
    digits: int = 7,
    seed: int = 0,
    batch_size: int = 16,
    generate: Generate | None = None,
    progress: Callable[[dict[str, Any]], None] | None = None,
) -> list[dict[str, Any]]:
    """Greedy answers to needle prompts, compared with the numbers as text.

    Args:
      model, params: any of this library's models.
      tokenizer: of the model.
      haystack: the books, as `Haystack.read("books.jsonl.xz")` reads them.
      lengths: tokens of prompt and answer together, at most.
      depths: where the asked-for needle lies, as a share of the text, each in [0, 1].
      keys: needles in the text; one is asked for. 1 is the single-key task.
      trials: prompts per cell. All cells ask the same questions; fewer trials are a prefix of
        more.
      digits: digits of every number.
      seed: of keys, numbers and the text's beginnings.
      batch_size, generate, progress: as for `retrieval_grid`.

    Returns:
      One row per cell, lengths outermost: length, unit ("tokens"), depth, keys, prompt_tokens
      (of the longest prompt), trials, correct, exact_match (a share).

    Raises:
      ValueError: an empty or bad list, a length too short for needles and question.
    """

    def count(text: str) -> int:
        return len(tokenizer.encode(text))

    def ask(length: int, depth: float) -> list[tuple[str, str]]:
        settings = {"keys": keys, "digits": digits, "seed": seed}
        asked = [
            make_question(haystack, length, depth, count, **settings, index=index)
            for index in range(trials)
        ]
        return [(question.prompt, question.answer) for question in asked]

    check_grid(lengths, depths, trials, batch_size)
    cells = [
        {"length": length, "unit": "tokens", "depth": depth, "keys": keys}
        for length in lengths
        for depth in depths
    ]
    return score_grid(model, params, tokenizer, cells, ask, batch_size, generate, progress)
