"""Any of our models as a model of lm-evaluation-harness (the extra `lm-eval`).

    import lm_eval, multiscreen_jax as mj

    adaptor = mj.evaluation.lm_eval.Adaptor(model, params, tokenizer)
    lm_eval.simple_evaluate(model=adaptor, tasks=["lambada_openai"])["results"]

Rows are padded to a power of two of tokens, and batches to a power of two of rows, so that a task
compiles a handful of programs, whatever its texts.
"""

import itertools
import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from multiscreen_jax import losses
from multiscreen_jax.data.config import import_package
from multiscreen_jax.data.tokenizers import Tokenizer
from multiscreen_jax.fields import is_integer
from multiscreen_jax.generation import stream
from multiscreen_jax.jitted import jitted

import_package("lm_eval", "mj.evaluation.lm_eval")  # says what to install

from lm_eval.api.model import TemplateLM  # noqa: E402
from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text  # noqa: E402
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window  # noqa: E402
from tqdm import tqdm  # noqa: E402

DEFAULT_LENGTH = 2048  # of models that do not say what they were trained on
_DEFAULT_NEW_TOKENS = 256
_SMALLEST_ROW = 16
_SETTINGS = ("temperature", "top_k", "top_p")


class Adaptor(TemplateLM):
    """Log-likelihoods and greedy or sampled continuations, as the harness asks for them.

    Args:
        model, params: any of this library's models.
        tokenizer: of the model.
        max_length: most tokens the model reads at once. Longer inputs lose their beginning, as in
            the harness's own models, and rolling log-likelihoods go on in the next window. None is
            the longest training sequence, or 2048 where the config does not know it; both within
            what the levels of a log-linear model hold.
        max_new_tokens: of tasks that do not say how many. None is 256, or half of max_length.
        batch_size: most rows at a time; results do not depend on it, up to rounding.
        prefix_token: stands before a text without a context; None is the end-of-document token.
        seed: of tasks that sample; each request has a key of its own.

    Raises:
        ValueError: a bad setting here; in use an empty or too long continuation, no room for
            new tokens, a generation argument that we do not have.

    Cost: one forward pass per batch, and never B x T x O logits (see `losses`); generation with a
    cache, which ends when every row of a batch has met a stop string.
    """

    def __init__(
        self,
        model: nn.Module,
        params: Any,
        tokenizer: Tokenizer,
        *,
        max_length: int | None = None,
        max_new_tokens: int | None = None,
        batch_size: int = 16,
        prefix_token: int | None = None,
        seed: int = 0,
    ):
        super().__init__()
        config = model.config  # pyright: ignore[reportAttributeAccessIssue]
        if max_length is None:
            max_length = _default_length(model)
        if max_new_tokens is None:
            max_new_tokens = max(1, min(_DEFAULT_NEW_TOKENS, max_length // 2))
        for name, value in {
            "max_length": max_length, "max_new_tokens": max_new_tokens, "batch_size": batch_size
        }.items():  # fmt: skip
            if not is_integer(value) or value < 1:
                raise ValueError(f"{name} must be an integer >= 1, got {value!r}")
        if tokenizer.vocab_size > config.vocab_size:
            raise ValueError(
                f"the tokenizer has {tokenizer.vocab_size} tokens, the model only "
                f"{config.vocab_size}"
            )
        if prefix_token is not None and not (
            is_integer(prefix_token) and 0 <= prefix_token < config.vocab_size
        ):
            raise ValueError(
                f"prefix_token is {prefix_token!r}; allowed: 0 to {config.vocab_size - 1}"
            )
        fits = model.longest_document  # pyright: ignore[reportAttributeAccessIssue]
        if fits is not None and max_length > fits:
            raise ValueError(f"max_length is {max_length}, but the model's levels hold {fits}")
        self.model, self.params, self._tokenizer = model, params, tokenizer
        self.max_length, self.max_gen_toks, self.batch_size = max_length, max_new_tokens, batch_size
        self._prefix, self._seed = prefix_token, seed

    @property
    def eot_token_id(self) -> int | None:
        """The token that ends documents, if there is one."""
        return self._tokenizer.eos_id

    @property
    def prefix_token_id(self) -> int:
        """The token that stands before a text without a context."""
        prefix = self.eot_token_id if self._prefix is None else self._prefix
        if prefix is None:
            raise ValueError(
                f"the tokenizer {self._tokenizer.name!r} has no end-of-document token to begin a "
                "text with; give prefix_token"
            )
        return prefix

    @property
    def tokenizer_name(self) -> str:
        return self._tokenizer.name

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        """Tokens of a text; there are no special ones to add."""
        return np.asarray(self._tokenizer.encode(string), np.int32).tolist()

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        """log p(text) in nats, each text after the prefix token, in windows of `max_length`."""
        windows, owners = [], []
        for number, request in enumerate(requests):
            (text,) = request.args
            found = get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            for window in found:
                windows.append((None, *make_disjoint_window(window)))
                owners.append(number)
        totals = [0.0] * len(requests)
        scores = self._loglikelihood_tokens(windows, disable_tqdm=disable_tqdm)
        for number, (score, _) in zip(owners, scores, strict=True):
            totals[number] += score
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def _loglikelihood_tokens(
        self, requests: Any, disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        """(log p(continuation | context) in nats, whether each of its tokens is the likeliest)."""
        rows = [self._row(context, ending) for _, context, ending in requests]
        answers: list[Any] = [None] * len(rows)
        score = jitted(_scores, self.model, self.params)
        progress = tqdm(total=len(rows), desc="loglikelihood", disable=disable_tqdm)
        for width, numbers in self._batches([len(row.tokens) - 1 for row in rows]):
            batch = np.zeros((_rows(len(numbers)), width + 1), np.int32)
            for place, number in enumerate(numbers):
                batch[place, : len(rows[number].tokens)] = rows[number].tokens
            nats, hits = map(np.asarray, score(self.params, batch))
            for place, number in enumerate(numbers):
                targets = slice(rows[number].first, len(rows[number].tokens) - 1)
                total = -float(nats[place, targets].sum(dtype=np.float64))
                answers[number] = (total, bool(hits[place, targets].all()))
                if (texts := requests[number][0]) is not None:
                    self.cache_hook.add_partial("loglikelihood", texts, answers[number])
            progress.update(len(numbers))
        progress.close()
        return answers

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        """Continuations up to the first stop string or the end of the document, both left out.

        Contexts lose their beginning where they leave no room for the new tokens.
        """
        answers: list[Any] = [None] * len(requests)
        alike: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            alike.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(number)
        progress = tqdm(total=len(requests), desc="generate_until", disable=disable_tqdm)
        for numbers in alike.values():
            plan = self._plan(requests[numbers[0]].args[1])
            room = self.max_length - plan.max_new_tokens
            prompts = [self._prompt(requests[number].args[0], room) for number in numbers]
            for _, places in self._batches([len(prompt) for prompt in prompts]):
                chosen = [numbers[place] for place in places]
                texts = self._continue([prompts[place] for place in places], chosen, plan)
                for number, text in zip(chosen, texts, strict=True):
                    answers[number] = text
                    self.cache_hook.add_partial("generate_until", requests[number].args, text)
                progress.update(len(places))
        progress.close()
        return answers

    def _row(self, context: list[int], ending: list[int]) -> "_Row":
        if not 0 < len(ending) <= self.max_length:
            raise ValueError(
                f"a continuation has {len(ending)} tokens; allowed: 1 to max_length = "
                f"{self.max_length}"
            )
        tokens = [*context, *ending][-(self.max_length + 1) :]
        return _Row(tokens, len(tokens) - len(ending) - 1)

    def _prompt(self, context: str, room: int) -> list[int]:
        return (self.tok_encode(context) or [self.prefix_token_id])[-room:]

    def _plan(self, arguments: dict[str, Any]) -> "_Plan":
        arguments = dict(normalize_gen_kwargs(arguments, self.max_gen_toks))
        new, until = arguments.pop("max_gen_toks"), arguments.pop("until")
        if not 0 < new < self.max_length:
            raise ValueError(
                f"the task asks for {new} new tokens; allowed: 1 to {self.max_length - 1}, one "
                "less than max_length"
            )
        arguments.pop("do_sample")  # false came with a temperature of 0
        if arguments.get("num_beams") == 1:
            del arguments["num_beams"]
        unknown = [name for name in arguments if name not in _SETTINGS]
        if unknown:
            raise ValueError(
                f"the task asks for {unknown[0]}={arguments[unknown[0]]!r}; allowed: until, "
                f"max_gen_toks, do_sample, {', '.join(_SETTINGS)}"
            )
        return _Plan(new, [stop for stop in until if stop], arguments)

    def _continue(self, prompts: list[list[int]], numbers: list[int], plan: "_Plan") -> list[str]:
        fill = _rows(len(prompts)) - len(prompts)
        eos = self.eot_token_id
        key = jax.random.key(self._seed)
        steps = stream(
            self.model,
            self.params,
            prompts + prompts[-1:] * fill,
            plan.max_new_tokens,
            key=jax.vmap(jax.random.fold_in, (None, 0))(
                key, np.asarray(numbers + numbers[-1:] * fill)
            ),
            stop_tokens=() if eos is None else (eos,),
            vocab_limit=self._tokenizer.vocab_size,
            **plan.settings,
        )
        shown = [self._tokenizer.text_stream(prompt) for prompt in prompts]
        texts = [""] * len(prompts)
        running = set(range(len(prompts)))
        for step in steps:
            for place in sorted(running):
                if step[place] == eos:
                    running.discard(place)
                    continue
                texts[place] += shown[place].push(step[place])
                if any(stop in texts[place] for stop in plan.until):
                    running.discard(place)
            if not running:
                break
        texts = [text + rest.finish() for text, rest in zip(texts, shown, strict=True)]
        return [postprocess_generated_text(text, plan.until, None) for text in texts]

    def _batches(self, lengths: Sequence[int]) -> Iterator[tuple[int, list[int]]]:
        """(tokens in a row, numbers of the requests), longest first, so that memory runs out early.

        Rows of one batch round up to the same length.
        """
        widths = [min(_power_of_two(n, _SMALLEST_ROW), self.max_length) for n in lengths]
        order = sorted(range(len(lengths)), key=lambda number: -lengths[number])
        for width, same in itertools.groupby(order, key=lambda number: widths[number]):
            numbers = list(same)
            for first in range(0, len(numbers), self.batch_size):
                yield width, numbers[first : first + self.batch_size]


class _Row(NamedTuple):
    tokens: list[int]  # context and continuation, at most max_length + 1
    first: int  # target of the row that is the continuation's first token


class _Plan(NamedTuple):
    max_new_tokens: int
    until: list[str]
    settings: dict[str, Any]


def _scores(model: nn.Module, params: Any, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
    # The padding comes last, where no scored token sees it: it needs no segment ids.
    one = model.for_one_document()  # pyright: ignore[reportAttributeAccessIssue]
    nats, hits, _ = losses.token_scores(one, params, {"tokens": tokens})
    return nats, hits


def _default_length(model: Any) -> int:
    length = model.config.trained_length or DEFAULT_LENGTH
    return length if model.longest_document is None else min(length, model.longest_document)


def _rows(count: int) -> int:
    return _power_of_two(count, 1)


def _power_of_two(n: int, at_least: int) -> int:
    return max(at_least, 1 << (n - 1).bit_length())
