"""ABCDigits by context length and depth ("Screening Is Enough", Fig. 6), trained from scratch.

The paper trains on web text, at 2^12 tokens and once more at a longer length, and asks at 2^12 to
2^17. It finds Multiscreen near 100 % everywhere, and a Transformer 12 times as large worse already
at its training length. Here both train on the task itself, in characters, in three stages of
growing length; the last, 50 lines (450 characters), is the training length, and questions go to 32
times it.

At the paper's scale base and continued models are asked, at lengths in tokens.

    python -m experiments.paper run abcdigits

It gave: 100 % at every length and depth, with three seeds, by the inference rule; with the windows
as learned, which end at some length, 20 to 52 % at 8 times the training length. The Transformer
answered nothing at rates 2^-10 to 2^-7, nor at 2^-9 with two more seeds: not solved in these steps.
"""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.paper import plots, text_runs
from experiments.paper.study import Row, Run
from multiscreen_jax.evaluation.figures import draw_retrieval

TITLE = "ABCDigits"
SEEDS = (0, 1, 2)
TRAINED, NEAR, FAR = 50, (50, 100, 200, 400), (800, 1600)  # lines
RATE = 2.0**-8
# Swept with one seed. Where no rate is best, as none answered anything, a middle one goes on.
TRANSFORMER_RATES = (2.0**-10, 2.0**-9, 2.0**-8, 2.0**-7)
TRANSFORMER_BEST = 2.0**-9
FACTORS = (1, 2, 4, 8, 16, 32)


def runs(scale: str) -> list[Run]:
    if scale == "paper":
        configs = ("multiscreen_28m", "multiscreen_286m", "transformer_353m")
        return [_paper_run(config, seed) for config in configs for seed in SEEDS]
    multiscreen = [_multiscreen(seed) for seed in SEEDS]
    swept = [_transformer(rate, 0) for rate in TRANSFORMER_RATES]
    return [*multiscreen, *swept, *(_transformer(TRANSFORMER_BEST, seed) for seed in SEEDS[1:])]


def _multiscreen(seed: int) -> Run:
    return Run(
        f"abcdigits-multiscreen-seed{seed}",
        (
            *_stages("abcdigits_small", RATE, seed),
            _ask("rule", NEAR, 100, "--infinite-windows"),
            _ask("rule_far", FAR, 40, "--infinite-windows"),
            _ask("learned", NEAR, 40, ""),
        ),
        seed,
        {"model": "multiscreen", "learning_rate": RATE},
    )


def _transformer(rate: float, seed: int) -> Run:
    asked = (_ask(f"factor{n}", NEAR, 40, f"--rope-factor {n}") for n in FACTORS)
    return Run(
        f"abcdigits-transformer-rate{rate:g}-seed{seed}",
        (*_stages("abcdigits_small_transformer", rate, seed), *asked),
        seed,
        {"model": "transformer", "learning_rate": rate},
    )


def _stages(config: str, rate: float, seed: int) -> list[str]:
    """Each starts from the one before it, with its optimizer state and without a warm-up."""
    train = f"experiments.train {config} --train.seed {seed} --data.seed {seed} --train.output-dir"
    letters = "--data.abcdigits.max-letters 26 --data.abcdigits.halving-share 0.5"
    return [
        f"{train} {{run}}/stage1 --optim.learning-rate {rate} --train.steps 1500",
        f"{train} {{run}}/stage2 --optim.learning-rate {rate / 2} --train.steps 420 {letters} "
        "--train.init-from {run}/stage1 --data.sequence-length 288 --data.batch-size 8 "
        "--data.abcdigits.min-letters 4",
        f"{train} {{run}}/stage3 --optim.learning-rate {rate / 4} --train.steps 400 {letters} "
        "--train.init-from {run}/stage2 --data.sequence-length 450 --data.batch-size 5 "
        "--data.abcdigits.min-letters 8",
    ]


def _ask(name: str, lines: tuple[int, ...], trials: int, options: str) -> str:
    return (
        "experiments.evaluate {run}/stage3 --task abcdigits --abcdigits.unit lines "
        f"--abcdigits.lengths {' '.join(map(str, lines))} --abcdigits.trials {trials} "
        f"--batch-size 4 --output {{run}}/{name} {options}"
    ).strip()


def _paper_run(config: str, seed: int) -> Run:
    lengths = " ".join(str(2**n) for n in range(12, 18))
    commands = tuple(
        f"experiments.evaluate {folder} --task abcdigits --abcdigits.lengths {lengths} "
        f"--abcdigits.trials 1000 --batch-size 1 --output {{run}}/{name} {option}".strip()
        for name, folder, option in text_runs.asked(config, seed)
    )
    continued = text_runs.continued(config, seed)
    columns = {**continued.columns, "learning_rate": ""}
    return Run(f"abcdigits-{config}-seed{seed}", commands, seed, columns, needs=(continued,))


def measure(run: Run, folder: Path) -> list[Row]:
    """Exact match in every cell, under each rule or factor and, where there are two, stage."""
    rows = []
    for asked in sorted(folder.glob("*/abcdigits.json")):
        found = plots.evaluation(asked)
        rule = f"factor {found['rope_factor']:g}" if found["rope_factor"] else "learned windows"
        rule = "infinite windows" if found["infinite_windows"] else rule
        facts = {"rule": rule}
        stage = asked.parent.name.partition("-")[0]
        if stage in text_runs.STAGES:
            facts |= {"stage": stage, "trained": text_runs.STAGES[stage], "unit": "tokens"}
        cells = ("length", "depth", "trials", "exact_match")
        rows += [{**facts, **{name: cell[name] for name in cells}} for cell in found["rows"]]
    return rows


def figure(rows: list[Row]) -> Figure:
    """By length, a line per run; below by length and depth, the mean of the runs of a kind."""
    kinds = _kinds(rows)
    height, below = 3.5, 2.3 * math.ceil(len(kinds) / _GRIDS)
    drawn = Figure(figsize=(9.2, height + below), facecolor="white", layout="constrained")
    parts = drawn.subfigures(2, 1, height_ratios=(height, below))
    _draw_lines(parts[0].subplots(1, 2, sharex=True, sharey=True), rows)
    axes = parts[1].subplots(math.ceil(len(kinds) / _GRIDS), _GRIDS, squeeze=False).flat
    for ax, (kind, curves) in itertools.zip_longest(axes, kinds.items(), fillvalue=("", [])):
        _draw_grid(ax, kind, curves) if curves else ax.set_axis_off()
    return drawn


_GRIDS = 3  # side by side


def _draw_grid(ax: Axes, kind: str, curves: list[list[Row]]) -> None:
    cells = plots.groups([row for curve in curves for row in curve], "length", "depth")
    means = [
        {"length": length, "depth": depth, "exact_match": plots.mean(map(_score, found))}
        | {"unit": _unit(found)}
        for (length, depth), found in sorted(cells.items())
    ]
    draw_retrieval(ax, means)
    ax.set_title(f"{kind}: %, {len(curves)} runs", fontsize=8.5, color=plots.INK)


def _draw_lines(axes: Sequence[Axes], rows: list[Row]) -> None:
    lengths = sorted({row["length"] for row in rows})
    for ax, model in zip(axes, ("multiscreen", "transformer"), strict=True):
        plots.style(ax)
        curves = _curves([row for row in rows if row["model"] == model])
        labels = list(dict.fromkeys(_label(curve[0]) for curve in curves))
        for curve in sorted(curves, key=lambda curve: curve[0]["seed"]):
            place = labels.index(_label(curve[0]))
            dash = ":" if _rule(curve[0]) == "learned windows" else "-"
            ax.plot(*_by_length(curve), dash, marker="o", ms=3.5, color=plots.COLOURS[model])
            ax.lines[-1].set(alpha=1 - 0.7 * place / len(labels), label=labels[place])
        plots.legend(ax, fontsize=7)
        for trained in {_trained(row) for row in rows}:
            ax.axvline(trained, color=plots.FAINT, lw=1, ls=(0, (4, 3)))
        ax.set_xscale("log", base=2)
        ax.set_xticks(lengths, [f"{n:,}" for n in lengths], fontsize=7.5)
        ax.minorticks_off()
        ax.set(xlabel=f"{_unit(rows)} (dashed: training length)", ylim=(-0.02, 1.03))
        ax.set_title(model.capitalize(), fontsize=10, color=plots.INK)
    axes[0].set_ylabel("exact match, mean over depths")


def report(rows: list[Row]) -> str:
    lengths = sorted({row["length"] for row in rows})
    lines = []
    for curve in _curves(rows):
        scores = dict(zip(*_by_length(curve), strict=True))
        shown = {f"{n:,}": f"{scores[n]:.1%}" if n in scores else "" for n in lengths}
        lines.append({"": f"{_label(curve[0])}, seed {curve[0]['seed']}", **shown})
    trained = " and ".join(f"{n:,}" for n in sorted({_trained(row) for row in rows}))
    return f"""Exact match, mean over depths, by {_unit(rows)} of context (trained at {trained}):

{plots.table(lines)}

{_verdict(rows)}"""


def _verdict(rows: list[Row]) -> str:
    texts = [_said(kind, curves) for kind, curves in _kinds(rows).items()]
    if any(row["rule"] == "infinite windows" for row in rows):
        texts.append("Infinite are the windows that reached the training length.")
    others = [row for row in rows if row["model"] == "transformer"]
    if others and not any(map(_score, others)):
        texts.append("No Transformer answered anything, so that none of its rates is the best.")
    return " ".join(texts)


def _said(kind: str, curves: list[list[Row]]) -> str:
    """The worst of Multiscreen's seeds, or the best of the Transformer's runs."""
    first = curves[0][0]
    which, pick = ("worst", min) if first["model"] == "multiscreen" else ("best", max)
    scores = [dict(zip(*_by_length(curve), strict=True)) for curve in curves]
    trained = _trained(first)
    lengths = [n for n in (trained, 8 * trained, 32 * trained) if all(n in one for one in scores)]
    said = [f"{pick(one[n] for one in scores):.1%} at {n:,}" for n in lengths]
    solved = "" if pick(one[trained] for one in scores) >= 0.97 else "not "
    return (
        f"{kind}, the {which} of {len(curves)}: {', '.join(said)} {_unit(curves[0])}, "
        f"{solved}solved at its training length."
    )


def _kinds(rows: list[Row]) -> dict[str, list[list[Row]]]:
    found: dict[str, list[list[Row]]] = {}
    for curve in _curves(rows):
        found.setdefault(_kind(curve[0]), []).append(curve)
    return found


def _kind(row: Row) -> str:
    """What a curve is of, seed and rate apart."""
    parts = (row["model"].capitalize(), row.get("size"), row.get("stage"), _rule(row))
    return ", ".join(part for part in parts if part)


def _label(row: Row) -> str:
    rate = row["learning_rate"]
    return _kind(row) + (f", rate {rate:.1g}" if row["model"] == "transformer" and rate else "")


def _rule(row: Row) -> str:
    return "best factor" if row["model"] == "transformer" else row["rule"]


def _curves(rows: list[Row]) -> list[list[Row]]:
    """A run's cells under one rule; of RoPE's factors the best of each cell."""
    found: dict[tuple, list[Row]] = {}
    for row in rows:
        found.setdefault((row["run"], row.get("stage"), _rule(row)), []).append(row)
    return [
        [max(cell, key=_score) for cell in plots.groups(one, "length", "depth").values()]
        for one in found.values()
    ]


def _by_length(rows: list[Row]) -> tuple[list[int], list[float]]:
    found = plots.groups(sorted(rows, key=lambda row: row["length"]), "length")
    return [n for (n,) in found], [plots.mean(map(_score, cells)) for cells in found.values()]


def _trained(row: Row) -> int:
    return row.get("trained") or TRAINED


def _unit(rows: list[Row]) -> str:
    return rows[0].get("unit") or "lines"


def _score(row: Row) -> float:
    return row["exact_match"]
