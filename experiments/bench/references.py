"""PyTorch implementations of Multiscreen as contenders: how each is imported, built and called.

    pypi     the package multiscreen 0.2.0, installed
    dieod    a checkout of dieOD/multiscreen-pytorch
    hf       a checkout of kuroganegames/Multiscreen-HF
    exveria  a checkout of exveria1015/screening-is-enough-pytorch

Three of them call their package `multiscreen`, so a process can hold only one. All get weights that
`multiscreen_jax.convert` wrote, and positions by the paper's rule.
"""

import importlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.bench.harness import ALLOCATORS
from experiments.bench.inputs import cache_entries, read_shape

# Two of them wrap positions around from their maximal length on, against the paper.
NEVER = 2**20


@dataclass(frozen=True)
class Reference:
    """Adapter of one implementation.

    Attributes:
        source: the name of its weights in `multiscreen_jax.convert`.
        folder: where in the checkout its package lies.
        build: (shape, tensors) -> the model, both as `inputs.write_weights` writes them.
        logits: (model, tokens [1, T]) -> [1, T, O].
        next_logits: (model, token [1, 1], caches, context) -> [1, 1, O]; None without a cache.
    """

    source: str
    folder: str
    build: Callable[[Mapping[str, Any], Mapping[str, Any]], Any]
    logits: Callable[[Any, Any], Any]
    next_logits: Callable[[Any, Any, Any, int], Any] | None = None


def check_allocators(names: Sequence[str]) -> None:
    """ValueError unless all are known."""
    for name in names:
        if name not in ALLOCATORS:
            raise ValueError(f"allocators must be among {list(ALLOCATORS)}, got {name!r}")


def check_checkouts(**folders: Path | None) -> None:
    """FileNotFoundError unless those that are given exist."""
    for name, folder in folders.items():
        if folder is not None and not folder.is_dir():
            raise FileNotFoundError(f"{name} must be a checkout, but there is no folder {folder}")


def training_step(
    reference: str, weights: str, checkout: str | None = None, compiled: bool = False
) -> tuple[Callable[[], float], dict]:
    """Forward, cross-entropy and backward of all parameters; returns the loss."""
    import torch

    adapter, model, _, tokens = _load(reference, weights, checkout)
    model.train()
    inputs, targets = tokens[:, :-1], tokens[0, 1:]

    def loss_of(inputs):
        return torch.nn.functional.cross_entropy(adapter.logits(model, inputs)[0], targets)

    step = torch.compile(loss_of) if compiled else loss_of

    def work() -> float:
        model.zero_grad(set_to_none=True)
        loss = step(inputs)
        loss.backward()
        return loss.item()

    return work, {}


def decode(
    reference: str, weights: str, context: int, checkout: str | None = None, repeats: int = 1
) -> tuple[Callable[[], float], dict]:
    """One token after `context` cached ones, `repeats` times over; returns a logit."""
    import torch

    adapter, model, shape, tokens = _load(reference, weights, checkout)
    model.eval()
    key_dim = shape["key_dim"]
    caches = []
    for layer in range(shape["num_layers"]):
        entries = np.stack(
            [
                # Entries are in the order of their age: the latest position comes first.
                cache_entries(layer, tile, context, key_dim, shape["value_dim"])[::-1]
                for tile in range(shape["num_heads"])
            ]
        )
        entries = torch.from_numpy(entries.copy())[None]
        caches.append((entries[..., :key_dim].contiguous(), entries[..., key_dim:].contiguous()))
    token = tokens[:, :1]

    def work() -> float:
        with torch.inference_mode():
            for _ in range(repeats):
                logits = adapter.next_logits(model, token, caches, context)
        return logits[0, 0, 0].item()

    cached = sum(x.nbytes for pair in caches for x in pair)
    return work, {"cache bytes": cached}


def _load(reference: str, weights: str, checkout: str | None):
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    adapter = REFERENCES[reference]
    if checkout is not None:
        sys.path.insert(0, f"{checkout}/{adapter.folder}")
    arrays = dict(np.load(f"{weights}/{adapter.source.replace('/', '-')}.npz"))
    shape = read_shape(weights)
    tokens = torch.from_numpy(np.load(f"{weights}/tokens.npy").astype(np.int64))
    tensors = {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}
    return adapter, adapter.build(shape, tensors), shape, tokens


def _build_pypi(shape, tensors):
    package = importlib.import_module("multiscreen")
    model = package.MultiScreen(
        num_tokens=shape["vocab_size"],
        dim=shape["model_dim"],
        depth=shape["num_layers"],
        heads=shape["num_heads"],
        dim_keys=shape["key_dim"],
        dim_values=shape["value_dim"],
        window_threshold=shape["window_threshold"],
    )
    return _with_weights(model, tensors)


def _build_dieod(shape, tensors):
    package = importlib.import_module("multiscreen")
    config = package.MultiscreenConfig(
        vocab_size=shape["vocab_size"],
        hidden_dim=shape["model_dim"],
        num_layers=shape["num_layers"],
        num_heads=shape["num_heads"],
        key_dim=shape["key_dim"],
        value_dim=shape["value_dim"],
        mipe_threshold=shape["window_threshold"],
        max_seq_len=NEVER,
    )
    return _with_weights(package.MultiscreenModel(config), tensors)


def _build_hf(shape, tensors):
    package = importlib.import_module("multiscreen_transformers")
    config = package.MultiscreenConfig(
        vocab_size=shape["vocab_size"],
        hidden_size=shape["model_dim"],
        num_hidden_layers=shape["num_layers"],
        num_attention_heads=shape["num_heads"],
        key_dim=shape["key_dim"],
        value_dim=shape["value_dim"],
        mipe_threshold=shape["window_threshold"],
        max_position_embeddings=NEVER,
        mipe_position_mode="paper_absolute",
    )
    return _with_weights(package.MultiscreenForCausalLM(config), tensors)


def _build_exveria(shape, tensors):
    package = importlib.import_module("multiscreen.model")
    config = importlib.import_module("multiscreen.config").MultiscreenConfig(
        vocab_size=shape["vocab_size"],
        d_model=shape["model_dim"],
        n_layers=shape["num_layers"],
        n_heads=shape["num_heads"],
        d_key=shape["key_dim"],
        d_value=shape["value_dim"],
        mipe_threshold=shape["window_threshold"],
        max_seq_len=NEVER,
        max_train_seq_len=NEVER,
    )
    return _with_weights(package.MultiscreenLM(config), _exveria_tensors(tensors))


def _exveria_tensors(paper):
    """The paper's arrays, one module per head; its acceptance parameter has the opposite sign."""
    named = {"embedding.weight": paper["W_E"], "s_e": paper["s_E"], "s_f": paper["s_F"]}
    projections = {"W_Q": "q_proj", "W_K": "k_proj", "W_V": "v_proj", "W_G": "g_proj"}
    scalars = {"s_w": "screening.s_w", "s_r": "screening.s_r", "s_O": "s_o"}
    for name, tensor in paper.items():
        layer, _, kind = name.removeprefix("layers.").partition(".")
        for head in range(len(tensor) if kind else 0):
            tile = f"layers.{layer}.tiles.{head}"
            if kind in scalars:
                value = -tensor[head] if kind == "s_r" else tensor[head]
                named[f"{tile}.{scalars[kind]}"] = value
            else:
                named[f"{tile}.{projections.get(kind, 'o_proj')}.weight"] = tensor[head].T
    return named


def _with_weights(model, tensors):
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    learned = {name for name, _ in model.named_parameters()}
    if unexpected or learned & set(missing):
        raise ValueError(f"weights do not fit: missing {missing}, unexpected {unexpected}")
    return model


REFERENCES = {
    "pypi": Reference(
        source="multiscreen/lucidrains",
        folder="",
        build=_build_pypi,
        logits=lambda model, tokens: model(tokens),
    ),
    "dieod": Reference(
        source="multiscreen/dieod",
        folder="",
        build=_build_dieod,
        logits=lambda model, tokens: model(tokens)[0],
        next_logits=lambda model, token, caches, context: model(
            token, start_pos=context, kv_caches=caches
        )[0],
    ),
    "hf": Reference(
        source="multiscreen/hf",
        folder="",
        build=_build_hf,
        logits=lambda model, tokens: model(tokens, use_cache=False).logits,
        next_logits=lambda model, token, caches, context: (
            model(token, past_key_values=caches, use_cache=True).logits
        ),
    ),
    "exveria": Reference(
        source="multiscreen/paper",
        folder="src",
        build=_build_exveria,
        logits=lambda model, tokens: model(tokens)[0],
    ),
}
