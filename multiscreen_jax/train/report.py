"""What a run says besides the loss: its environment, screening health, samples and pictures."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from multiscreen_jax.reports import health_of, pictures_of

# Relevance maps of a longer text have more points than a screen has pixels for.
_PICTURE_TOKENS = 96


def write_environment(run: Any) -> None:
    """Appends a line to OUTPUT/environment.jsonl: where and how the run goes on from this step."""
    device = jax.devices()[0]
    record = {
        "start": run.start,
        "jax": jax.__version__,
        "devices": f"{jax.device_count()} x {device.device_kind}",
        "platform": device.platform,
        "mesh": dict(run.mesh.shape),
        "implementations": {op: sorted(names) for op, names in run.implementations.items()},
    }
    with (Path(run.config.train.output_dir) / "environment.jsonl").open(
        "a", encoding="utf-8"
    ) as stream:
        stream.write(json.dumps(record) + "\n")


def model_health(model: Any, params: Any, batch: dict[str, Any]) -> dict[str, np.ndarray]:
    """What `reports` has to say of such a model, such as dead tiles; {} where nothing."""
    health = health_of(model)
    if health is None:
        return {}
    # Of several processes each holds some rows, and the tokens are few bytes.
    names = [name for name in ("tokens", "segment_ids") if name in batch]
    whole = [multihost_utils.process_allgather(batch[name], tiled=True) for name in names]
    values = health(model, params, *(rows[:, :-1] for rows in whole))
    return {f"health/{name}": value for name, value in values.items()}


def write_samples(run: Any, say: Callable[[str], None]) -> None:
    """Continues the prompts of train.sample_prompts: printed, and OUTPUT/samples.txt.

    Where there are pictures of such a model, OUTPUT/pictures shows the first text. Of several
    processes each fetches all parameters, and the first does the rest, on one device.
    """
    from multiscreen_jax.generation import generate

    settings, tokenizer = run.config.train, run.pipeline.tokenizer
    params = multihost_utils.process_allgather(run.state.params, tiled=True)
    if jax.process_index() > 0:
        return
    params = jax.device_put(params, jax.local_devices()[0])
    texts, sequences = [], []
    for tokens in run.prompts:
        new = generate(
            run.model,
            params,
            tokens,
            max_new_tokens=settings.sample_tokens,
            temperature=settings.sample_temperature,
            key=jax.random.key(settings.seed),
            vocab_limit=tokenizer.vocab_size,
        )
        sequences.append(np.concatenate([tokens, new]))
        texts.append(tokenizer.decode(sequences[-1]))
    folder = Path(settings.output_dir)
    (folder / "samples.txt").write_text("\n---\n".join(texts) + "\n", encoding="utf-8")
    say("\n---\n".join(texts))
    if save_pictures := pictures_of(run.model):
        shown = sequences[0][:_PICTURE_TOKENS]
        paths = save_pictures(
            run.model,
            params,
            shown,
            folder / "pictures",
            tokens_text=tokenizer.token_texts(shown),
        )
        say(f"pictures of it: {', '.join(map(str, paths))}")
