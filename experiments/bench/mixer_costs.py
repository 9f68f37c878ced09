"""What a token costs and what is kept of it, for every mixer: the table in docs/costs.md.

python -m experiments.bench.mixer_costs > docs/costs.md
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from multiscreen_jax.mixers import (
    AttentionSpec,
    Common,
    DeltaNetSpec,
    GatedDeltaNetSpec,
    LogLinearGatedDeltaNetSpec,
    LogLinearMamba2Spec,
    Mamba2Spec,
    Mixer,
    RetentionSpec,
    ScreeningSpec,
    Spec,
)
from multiscreen_jax.train import options

SHORT, LONG = 4096, 131072
_MAMBA2 = {"num_heads": 32, "key_dim": 128, "value_dim": 64}
_GATED = {"num_heads": 4, "key_dim": 192, "value_dim": 384}
_WIDTH = Common(model_dim=1024, num_layers=1)


class Row(NamedTuple):
    """A mixer of one layer, and the size of what it keeps of the past, in words."""

    name: str
    spec: Spec
    kept: str

    @property
    def mixer(self) -> Mixer:
        return self.spec.build(_WIDTH)


ROWS = [
    Row("softmax attention", AttentionSpec(num_heads=16), "2 T G K"),
    Row(
        "screening, initial windows",
        ScreeningSpec(num_heads=32),
        "sum over h of min(T, ⌈w_h⌉) (K + V)",
    ),
    Row("retention", RetentionSpec(num_heads=4, key_dim=256, value_dim=512), "H K V"),
    Row("Mamba-2", Mamba2Spec(**_MAMBA2), "H K V"),
    Row("Log-Linear Mamba-2", LogLinearMamba2Spec(**_MAMBA2, num_levels=18), "L H K V"),
    Row("DeltaNet", DeltaNetSpec(num_heads=8, key_dim=128, value_dim=128), "H K V"),
    Row("Gated DeltaNet", GatedDeltaNetSpec(**_GATED), "H K V"),
    Row(
        "Log-Linear Gated DeltaNet", LogLinearGatedDeltaNetSpec(**_GATED, num_levels=18), "L H K V"
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
    windows = {"log_window": jnp.linspace(0, math.log(256), row.spec.num_heads)[None]}

    def empty() -> Any:
        return row.mixer.init_cache(windows, 1, 1, length, jnp.float32)[0]

    # Rings are sized from the values of windows, which have none in a shape evaluation.
    cache = empty() if isinstance(row.spec, ScreeningSpec) else jax.eval_shape(empty)
    return sum(x.size for x in jax.tree.leaves(cache))


def cells(row: Row) -> list[str]:
    mixer, both = row.mixer, [SHORT, LONG]
    forward = [mixer.forward_flops(length) / length / 1e6 for length in both]
    decode = [mixer.decode_flops(length - 1) / 1e6 for length in both]
    numbers = [kept(row, length) / 1e3 for length in both]
    pairs = [" / ".join(f"{x:,.1f}" for x in pair) for pair in (forward, decode, numbers)]
    s = mixer.spec
    attends = isinstance(s, AttentionSpec)
    dims = [s.head_dim, s.head_dim] if attends else [s.key_dim, s.value_dim]
    shape = ", ".join(map(str, [s.num_heads, *dims]))
    return [row.name, shape, *pairs, row.kept]


def page() -> str:
    return "\n".join([_TEXT, *(f"| {' | '.join(cells(row))} |" for row in ROWS), _NOTES])


def main() -> None:
    """Print docs/costs.md: what a token costs, and what is kept of it, for every mixer."""
    print(page(), end="")


if __name__ == "__main__":
    options.call(main, prog="python -m experiments.bench.mixer_costs")
