"""PyTorch implementations of the linear family as contenders.

    mamba  a checkout of state-spaces/mamba
    fla    a checkout of fla-org/flash-linear-attention

Only single files of theirs are loaded: the packages need a GPU's libraries.
"""

import importlib.util
import os
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.bench.linear_ops import ARGUMENTS, fingerprint, make_inputs


@dataclass(frozen=True)
class LinearReference:
    """Adapter of one function.

    Attributes:
        op: which of ours it computes.
        checkout: where it comes from.
        file: in the checkout.
        call: (module, **arguments of the op) -> y [B,T,H,V], with scale 1.
    """

    op: str
    checkout: str
    file: str
    call: Callable[..., Any]


def step(
    reference: str, checkout: str, length: int, backward: bool
) -> tuple[Callable[[], float], dict[str, Any]]:
    """The op, forward or also backward to all its arguments."""
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    adapter = LINEAR_REFERENCES[reference]
    module = _load(Path(checkout) / adapter.file)
    arrays, cotangent = make_inputs(adapter.op, length)
    tensors = [torch.from_numpy(x).requires_grad_(backward) for x in arrays]
    cotangent = torch.from_numpy(cotangent)
    named = dict(zip(ARGUMENTS[adapter.op], tensors, strict=True))

    def work() -> float:
        with torch.set_grad_enabled(backward):
            y = adapter.call(module, **named)
            gradients = torch.autograd.grad(y, tensors, cotangent) if backward else []
        return fingerprint(y.detach().numpy(), [x.numpy() for x in gradients])

    return work, {}


def _load(file: Path) -> types.ModuleType:
    # What ssd_minimal.py imports for a test of its own.
    kernels = types.ModuleType("mamba_ssm.ops.triton.ssd_combined")
    kernels.mamba_chunk_scan_combined = None
    parents = [kernels.__name__.rsplit(".", n)[0] for n in (3, 2, 1)]
    sys.modules |= {name: types.ModuleType(name) for name in parents} | {kernels.__name__: kernels}
    spec = importlib.util.spec_from_file_location("reference", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _delta_rule(module, q, k, v, beta):
    heads_first = (x.transpose(1, 2) for x in (q * q.shape[-1] ** 0.5, k, v, beta))
    return module.delta_rule_chunkwise(*heads_first)[0].transpose(1, 2)


LINEAR_REFERENCES = {
    "ssd_minimal_discrete": LinearReference(
        op="ssd",
        checkout="mamba",
        file="mamba_ssm/modules/ssd_minimal.py",
        call=lambda module, q, k, v, g: module.ssd_minimal_discrete(v, g, k, q, 64)[0],
    ),
    "naive_chunk_simple_gla": LinearReference(
        op="ssd",
        checkout="fla",
        file="fla/ops/simple_gla/naive.py",
        call=lambda module, q, k, v, g: module.naive_chunk_simple_gla(q, k, v, g, scale=1.0)[0],
    ),
    "delta_rule_chunkwise": LinearReference(
        op="delta_rule", checkout="fla", file="fla/ops/delta_rule/naive.py", call=_delta_rule
    ),
    "naive_chunk_gated_delta_rule": LinearReference(
        op="gated_delta_rule",
        checkout="fla",
        file="fla/ops/gated_delta_rule/naive.py",
        call=lambda module, q, k, v, g, beta: module.naive_chunk_gated_delta_rule(
            q, k, v, g, beta, scale=1.0
        )[0],
    ),
}
