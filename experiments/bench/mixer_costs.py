"""What a token costs and what is kept of it, for every mixer: the table in docs/costs.md.

python -m experiments.bench.mixer_costs > docs/costs.md
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from multiscreen_jax.mixers.attention import Attention
from multiscreen_jax.mixers.delta_net import DeltaNetMixer
from multiscreen_jax.mixers.gated_delta_net import GatedDeltaNetMixer
from multiscreen_jax.mixers.log_linear_gated_delta_net import LogLinearGatedDeltaNetMixer
from multiscreen_jax.mixers.log_linear_mamba2 import LogLinearMamba2Mixer
from multiscreen_jax.mixers.mamba2 import Mamba2Mixer
from multiscreen_jax.mixers.retention import Retention
from multiscreen_jax.mixers.screening import ScreeningTiles
from multiscreen_jax.models import (
    DeltaNetConfig,
    GatedDeltaNetConfig,
    LogLinearGatedDeltaNetConfig,
    LogLinearMamba2Config,
    Mamba2Config,
    MultiscreenConfig,
    RetNetConfig,
    TransformerConfig,
)
from multiscreen_jax.train import options

SHORT, LONG = 4096, 131072
_MAMBA2 = {"num_heads": 32, "key_dim": 128, "value_dim": 64}
_GATED = {"num_heads": 4, "key_dim": 192, "value_dim": 384}
_WIDTH = {"vocab_size": 256, "model_dim": 1024, "num_layers": 1}


class Row(NamedTuple):
    """A mixer of one layer, and the size of what it keeps of the past, in words."""

    name: str
    mixer: Any
    config: Any
    kept: str


ROWS = [
    Row("softmax attention", Attention, TransformerConfig(**_WIDTH, num_heads=16), "2 T G K"),
    Row(
        "screening, initial windows",
        ScreeningTiles,
        MultiscreenConfig.from_psi(32, vocab_size=256, num_layers=1),
        "sum over h of min(T, ⌈w_h⌉) (K + V)",
    ),
    Row(
        "retention",
        Retention,
        RetNetConfig(**_WIDTH, num_heads=4, key_dim=256, value_dim=512),
        "H K V",
    ),
    Row("Mamba-2", Mamba2Mixer, Mamba2Config(**_WIDTH, **_MAMBA2), "H K V"),
    Row(
        "Log-Linear Mamba-2",
        LogLinearMamba2Mixer,
        LogLinearMamba2Config(**_WIDTH, **_MAMBA2, num_levels=18),
        "L H K V",
    ),
    Row(
        "DeltaNet",
        DeltaNetMixer,
        DeltaNetConfig(**_WIDTH, num_heads=8, key_dim=128, value_dim=128),
        "H K V",
    ),
    Row("Gated DeltaNet", GatedDeltaNetMixer, GatedDeltaNetConfig(**_WIDTH, **_GATED), "H K V"),
    Row(
        "Log-Linear Gated DeltaNet",
        LogLinearGatedDeltaNetMixer,
        LogLinearGatedDeltaNetConfig(**_WIDTH, **_GATED, num_levels=18),
        "L H K V",
    ),
]
_TEXT = f"""# What a token costs

One layer of model dimension 1024, heads as their papers shape them, without its feed-forward and
norms. A multiply-add counts two FLOPs; a training step takes three times the forward pass, and with
rematerialisation four. Sums of all tokens are divided by their number. "Kept" is what the cache of
one sequence holds of the past, in thousands of numbers. T is {SHORT:,} and {LONG:,} tokens.

| mixer | H, K, V | forward, MFLOPs | decoding, MFLOPs | kept, thousands | it grows as |
|---|---|--:|--:|--:|---|"""
_NOTES = """
Screening counts the pairs inside the windows, which are learned, 2 to 257 tokens at the start; an
infinite one costs what an attention head does. What is rejected is not subtracted. The linear
family keeps states and the windows of its short convolutions. L = 18 levels hold 131,072 tokens;
the forward pass reads those that are not empty, decoding reads them all. Packed rows and continued
states cost the log-linear ops more, see their docstrings. The formulas are `forward_flops` and
`decode_flops` of the mixers; this page is written by `python -m experiments.bench.mixer_costs`.
"""


def kept(row: Row, length: int) -> int:
    """Numbers in the cache of one layer and sequence."""
    c = row.config
    windows = {"log_window": jnp.linspace(0, math.log(256), c.num_heads)[None]}

    def empty() -> Any:
        return row.mixer.init_cache(c, windows, 1, 1, length, jnp.dtype(c.dtype))

    # Rings are sized from the values of windows, which have none in a shape evaluation.
    cache = empty() if row.mixer is ScreeningTiles else jax.eval_shape(empty)
    return sum(x.size for x in jax.tree.leaves(cache.replace(cursor=None)))


def cells(row: Row) -> list[str]:
    c = row.config
    both = [SHORT, LONG]
    forward = [row.mixer.forward_flops(c, length) / length / 1e6 for length in both]
    decode = [row.mixer.decode_flops(c, length - 1) / 1e6 for length in both]
    numbers = [kept(row, length) / 1e3 for length in both]
    pairs = [" / ".join(f"{x:,.1f}" for x in pair) for pair in (forward, decode, numbers)]
    attends = row.mixer is Attention
    dims = [c.head_dim, c.head_dim] if attends else [c.key_dim, c.value_dim]
    shape = ", ".join(map(str, [c.num_heads, *dims]))
    return [row.name, shape, *pairs, row.kept]


def page() -> str:
    return "\n".join([_TEXT, *(f"| {' | '.join(cells(row))} |" for row in ROWS), _NOTES])


def main() -> None:
    """Print docs/costs.md: what a token costs, and what is kept of it, for every mixer."""
    print(page(), end="")


if __name__ == "__main__":
    options.call(main, prog="python -m experiments.bench.mixer_costs")
