"""Loads a golden model file: config, parameters in our layout, tokens, expectations."""

import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import multiscreen_jax as mj
from tests.goldens import golden_path


@dataclasses.dataclass
class GoldenCase:
    config: mj.models.MultiscreenConfig
    model: mj.models.Multiscreen
    params: Any
    tokens: jax.Array
    expected: Any
    num_layers: int


def load_case(name: str, expected: str | None = None, dtype: str = "float32", **settings: Any):
    """Weights and tokens of `name`; expectations from the same file or another one."""
    file = np.load(golden_path(f"multiscreen/model_{name}.hf_oracle.npz"))
    spec = json.loads(str(file["config"]))
    config = mj.models.MultiscreenConfig(
        vocab_size=spec["vocab"],
        model_dim=spec["d_model"],
        num_layers=spec["n_layers"],
        num_heads=spec["n_heads"],
        key_dim=spec["d_key"],
        value_dim=spec["d_value"],
        window_threshold=spec["w_th"],
        dtype=dtype,
        param_dtype=dtype,
        precision="highest",
        **settings,
    )
    weights = {k.removeprefix("param/"): file[k] for k in file.files if k.startswith("param/")}
    params = mj.convert.from_torch("multiscreen/paper", weights, config)
    params = jax.tree.map(lambda x: jnp.asarray(x, dtype), params)
    return GoldenCase(
        config=config,
        model=mj.models.Multiscreen(config),
        params=params,
        tokens=jnp.asarray(file["input_ids"], jnp.int32),
        expected=file if expected is None else np.load(golden_path(f"multiscreen/{expected}.npz")),
        num_layers=spec["n_layers"],
    )


def dense_loss(model: Any, params: Any, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean next-token cross-entropy, written out, and the logits [B, T, O]."""
    logits = model.apply({"params": params}, tokens).logits
    log_probs = jax.nn.log_softmax(logits[:, :-1])
    return -jnp.take_along_axis(log_probs, tokens[:, 1:, None], axis=2).mean(), logits
