"""Small trained models that come with the library, so that nobody has to start from noise.

    model, params, tokenizer = mj.pretrained.load("multiscreen-speeches")
    prompt = tokenizer.encode("My fellow citizens")
    text = tokenizer.decode(mj.generate(model, params, prompt, max_new_tokens=64))

Each has a card, `NAME/README.md` in this folder: data, training, results, what it is not good for.
They are for notebooks and tests: 0.5 million parameters write text that looks like speeches.
"""

import dataclasses
import difflib
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn

from multiscreen_jax import convert
from multiscreen_jax.data import Tokenizer, open_tokenizer
from multiscreen_jax.fields import unknown_name
from multiscreen_jax.models import build
from multiscreen_jax.models.fit import check_params

_FOLDER = Path(__file__).parent
_WEIGHTS = "model.safetensors"


class Pretrained(NamedTuple):
    """A trained model with what reads and writes its tokens."""

    model: nn.Module
    params: dict[str, Any]
    tokenizer: Tokenizer


def names() -> list[str]:
    """What `load` knows."""
    return sorted(path.parent.name for path in _FOLDER.glob(f"*/{_WEIGHTS}"))


def load(name: str, **changes: Any) -> Pretrained:
    """A shipped model with float32 parameters and its tokenizer (bytes).

    Args:
      name: "multiscreen-speeches", or "transformer-speeches", its twin on the same text.
      changes: fields of the model's config to replace, e.g. `infinite_windows=True`; none that its
        parameters depend on.

    Raises:
      ValueError: an unknown name; a field's value that is not allowed, or needs other parameters.
      TypeError: an unknown field.
    """
    if name not in names():
        near = difflib.get_close_matches(str(name), names(), n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"no trained model {name!r}{hint}; known: {', '.join(names())}")
    params, config = convert.load_safetensors(_FOLDER / name / _WEIGHTS)
    allowed = [field.name for field in dataclasses.fields(config)]
    for field in changes:
        if field not in allowed:
            raise TypeError(str(unknown_name(f"field of {name}", field, allowed)))
    model = build(dataclasses.replace(config, **changes))
    if changes:
        try:
            check_params(model, params)
        except ValueError as error:
            given = ", ".join(f"{field}={value!r}" for field, value in changes.items())
            raise ValueError(
                f"{given} needs other parameters than those of {name}: {error}"
            ) from None
    return Pretrained(model, params, open_tokenizer("bytes"))
