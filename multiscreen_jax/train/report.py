"""What a run says about its model besides the loss: screening health, and samples."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from multiscreen_jax.models import Multiscreen


def model_health(model: Any, params: Any, tokens: np.ndarray) -> dict[str, Any]:
    """Windows, widths, dead tiles and rejected shares of a Multiscreen; {} of other models."""
    if not isinstance(model, Multiscreen):
        return {}
    from multiscreen_jax.inspect.health import health

    return {
        f"health/{name}": np.asarray(value) for name, value in health(model, params, tokens).items()
    }


def write_samples(run: Any, say: Any) -> None:
    """Continues the prompts of train.sample_prompts; prints them and writes OUTPUT/samples.txt."""
    from multiscreen_jax import generate

    settings, tokenizer = run.config.train, run.pipeline.tokenizer
    texts = []
    for prompt in settings.sample_prompts:
        tokens = np.asarray(tokenizer.encode(prompt), np.int32)[None]
        new = generate(run.model, run.state.params, tokens, max_new_tokens=settings.sample_tokens)
        texts.append(tokenizer.decode(np.asarray(jax.device_get(new))[0]))
    text = "\n---\n".join(texts)
    (Path(settings.output_dir) / "samples.txt").write_text(text + "\n")
    say(text)
