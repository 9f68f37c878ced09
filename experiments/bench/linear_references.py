"""PyTorch implementations of the linear family as contenders.

    mamba       a checkout of state-spaces/mamba
    fla         a checkout of fla-org/flash-linear-attention
    hattention  a checkout of HanGuo97/log-linear-attention; its code also needs einops

Only single files of theirs are loaded: the packages need a GPU's libraries.

As it is, hattention reads its table of levels from a file that is not in the repository, and else
fills it in a Python loop over all pairs of tokens, which takes hours. Here the table is computed at
once and kept between runs, so the comparison is to their favour.
"""

import functools
import importlib
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
    module = _load(adapter, Path(checkout))
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


def levels_matrix(length: int, base: int, htype: Any, dtype: Any, device: Any) -> Any:
    """What `make_levels_matrix` of hattention.base gives: level(t, s), -1 where s > t."""
    if base != 2 or htype.name != "WEAK":
        raise NotImplementedError(f"levels of base {base} and type {htype}")
    return _levels(length).to(dtype=dtype, device=device)


@functools.lru_cache
def _levels(length: int) -> Any:
    import torch

    t = torch.arange(length)
    levels = torch.frexp((t[:, None] ^ t).float()).exponent.long()
    return levels.masked_fill_(t > t[:, None], -1)


def _load(adapter: LinearReference, checkout: Path) -> types.ModuleType:
    if adapter.checkout == "mamba":  # for a test of its own
        _stub("mamba_ssm.ops.triton.ssd_combined", "mamba_chunk_scan_combined")
    if adapter.checkout == "hattention":
        _stub("fla.ops.utils", "chunk_local_cumsum")  # in backward functions that are not called
        # The package without what it imports: all its models.
        package = sys.modules["hattention"] = types.ModuleType("hattention")
        package.__path__ = [str(checkout / "hattention")]
        importlib.import_module("hattention.base").make_levels_matrix = levels_matrix
    spec = importlib.util.spec_from_file_location("reference", checkout / adapter.file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _stub(module: str, function: str) -> None:
    """Lets `from module import function` pass."""
    parts = module.split(".")
    for size in range(1, len(parts) + 1):
        name = ".".join(parts[:size])
        sys.modules[name] = types.ModuleType(name)
    setattr(sys.modules[module], function, None)


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
    "hssd_minimal_discrete": LinearReference(
        op="log_linear_ssd",
        checkout="hattention",
        file="hattention/hssd_minimal.py",
        call=lambda module, q, k, v, g, level_scales: module.hssd_minimal_discrete(
            v, g, k, q, level_scales, 2, module.HType.WEAK, 64
        ),
    ),
    "hgdn_minimal": LinearReference(
        op="log_linear_gated_delta_rule",
        checkout="hattention",
        file="hattention/hssd_minimal.py",
        call=lambda module, q, k, v, g, beta, level_scales: module.hgdn_minimal(
            q, k, v, beta, g, level_scales, 2, module.HType.WEAK, 64
        ),
    ),
}
