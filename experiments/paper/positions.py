"""Perplexity by position beyond the training length ("Screening Is Enough", Fig. 5).

The paper takes long documents of PG-19 and models trained at 2^12 tokens, and again after continued
training on longer rows: Multiscreen stays flat, the Transformer jumps past its training length, and
larger RoPE factors delay that and cost perplexity everywhere. Here: the quickstart's models, 2000
steps at 256 bytes of speeches, then 200 steps at 1024, read to 4096 bytes of the validation split.

    python -m experiments.paper run positions

It gave: 3.01 to 3.04 per byte for Multiscreen from the training length to 16 times it; 2.97 at the
training length and 40 at 8 times it for the Transformer. No window had grown beyond 256, so that
the inference rule changes nothing. Factors of RoPE cost far more than they save at this size.
"""

from pathlib import Path

from matplotlib.figure import Figure

from experiments.paper import plots
from experiments.paper.study import Row, Run

TITLE = "Perplexity by position"
TRAINED, CONTINUED, LENGTH = 256, 1024, 4096
EDGES = (0, 32, 64, 128, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096)
_FACTORS = (1, 2, 4, 8, 16)
_CONFIGS = {"multiscreen": "quickstart", "transformer": "quickstart_transformer"}
_CONTINUED_RATES = {"multiscreen": 2.0**-8, "transformer": 8e-4}
_STEPS = 2000


def runs(scale: str) -> list[Run]:
    if scale == "paper":
        return [_paper_run("multiscreen_286m"), _paper_run("transformer_353m")]
    return [_run(model) for model in _CONFIGS]


def _run(model: str) -> Run:
    train = f"experiments.train {_CONFIGS[model]} --train.output-dir"
    rate = _CONTINUED_RATES[model]
    commands = [
        f"{train} {{run}}/base --train.steps {_STEPS} --optim.decay-steps {_STEPS} "
        "--mesh.cpu-devices 1 --train.sample-prompts --train.health-every 0",
        f"{train} {{run}}/continued --train.init-from {{run}}/base --train.steps 200 "
        f"--data.sequence-length {CONTINUED} --data.batch-size 4 --optim.schedule constant "
        f"--optim.learning-rate {rate} --mesh.cpu-devices 1 --train.sample-prompts "
        "--train.health-every 0",
    ]
    commands += [
        f"experiments.evaluate {{run}}/{stage} --task positions --sequence-length {LENGTH} "
        f"--batch-size 1 --positions.edges {' '.join(map(str, EDGES))} --output "
        f"{{run}}/{stage}-{name} {option}".strip()
        for stage in ("base", "continued")
        for name, option in _rules(model)
    ]
    if model == "multiscreen":  # read by `windows`
        commands.append(
            "experiments.evaluate {run}/base --task relevance --relevance.tokens 203 "
            "--output {run}/base-tiles"
        )
    return Run(f"positions-{model}", tuple(commands), 0, {"model": model})


def _rules(model: str) -> list[tuple[str, str]]:
    if model == "multiscreen":
        return [("learned", ""), ("rule", "--infinite-windows")]
    return [(f"factor{n}", f"--rope-factor {n}") for n in _FACTORS]


def _paper_run(config: str) -> Run:
    model = config.partition("_")[0]
    train = f"experiments.train {config} --train.output-dir"
    rules = [("learned", ""), ("rule", "--infinite-windows")]
    if model == "transformer":
        rules = [(f"factor{n}", f"--rope-factor {n}") for n in (1, 2, 4, 8, 16, 32, 64)]
    edges = " ".join(str(2**n) for n in range(6, 18))
    asked = (
        f"experiments.evaluate {{run}}/{stage} --task positions --data.source pg19.jsonl "
        f"--sequence-length 131072 --batch-size 1 --positions.edges 0 {edges} "
        f"--output {{run}}/{stage}-{name} {option}".strip()
        for stage in ("base", "continued")
        for name, option in rules
    )
    look = "experiments.evaluate {run}/base --task relevance --output {run}/base-tiles"
    longer = "--data.sequence-length 32768 --data.batch-size 128 --train.steps 4096"
    return Run(
        f"positions-{config}",
        (
            f"{train} {{run}}/base",
            f"{train} {{run}}/continued --train.init-from {{run}}/base {longer}",
            *asked,
            *((look,) if model == "multiscreen" else ()),
        ),
        0,
        {"model": model},
    )


def measure(run: Run, folder: Path) -> list[Row]:
    rows = []
    for found in sorted(folder.glob("*/positions.json")):
        stage, _, rule = found.parent.name.partition("-")
        for bucket in plots.evaluation(found)["rows"]:
            rows.append({"stage": stage, "rule": rule, **bucket})
    return rows


def figure(rows: list[Row]) -> Figure:
    drawn, axes = plots.panels(2, sharey=True)
    for ax, stage, trained in zip(axes, ("base", "continued"), (TRAINED, CONTINUED), strict=True):
        lines = _lines([row for row in rows if row["stage"] == stage])
        for (model, rule), one in lines.items():
            edges = [max(row["start"], _FIRST) for row in one] + [one[-1]["end"]]
            dash = {"rule": "-", "factor1": "-", "learned": ":"}.get(rule, (0, (1, 1)))
            ax.stairs(
                [row["perplexity"] for row in one],
                edges,
                baseline=None,
                color=plots.COLOURS[model],
                lw=1.6 if dash == "-" else 1.0,
                ls=dash,
                label=f"{model}, {_NAMES[rule]}" if rule in _NAMES else None,
            )
        ax.axvline(trained, color=plots.FAINT, lw=1, ls=(0, (4, 3)))
        ax.set_xscale("log", base=2)
        ax.set_yscale("log")
        ticks = [edge for edge in EDGES if edge and edge & (edge - 1) == 0]
        ax.set_xticks(ticks, [f"{tick:,}" for tick in ticks], fontsize=7.5)
        ax.set_yticks([3, 5, 10, 20, 50], ["3", "5", "10", "20", "50"])
        ax.minorticks_off()
        ax.set(
            xlabel="position (bytes; dashed: training length)",
            xlim=(_FIRST, LENGTH),
            ylim=(2.6, 80),
        )
        ax.text(_FIRST * 1.1, 60, "dotted: factors 2 to 16 of RoPE", fontsize=7.5, color=plots.INK)
        ax.set_title(f"{stage}, trained at {trained}", fontsize=10, color=plots.INK)
    axes[0].set_ylabel("perplexity per byte")
    axes[1].legend(frameon=False, fontsize=7.5, loc="upper left", bbox_to_anchor=(0, 0.5))
    return drawn


_FIRST = 16  # where the logarithmic axis begins, in place of 0


def _lines(rows: list[Row], *more: str) -> dict[tuple, list[Row]]:
    """By model, rule and more; factors of RoPE in order."""
    found = plots.groups(rows, "model", "rule", *more)
    return dict(
        sorted(found.items(), key=lambda item: (item[0][0], *item[0][2:], _place(item[0][1])))
    )


def _place(rule: str) -> int:
    return int(rule.removeprefix("factor")) if rule.startswith("factor") else 0


_NAMES = {"rule": "infinite windows", "learned": "learned windows", "factor1": "RoPE as trained"}


def report(rows: list[Row]) -> str:
    lines = []
    for (model, rule, stage), one in _lines(rows, "stage").items():
        trained = TRAINED if stage == "base" else CONTINUED
        at = {row["end"]: row["perplexity"] for row in one}
        shown = {f"to {end:,}": f"{at[end]:.2f}" for end in (256, 512, 1024, 2048, 4096)}
        inside = at[trained]
        end = min(8 * trained, LENGTH)
        shown["last / trained"] = f"{at[end] / inside:.3f} at {end // trained}x"
        lines.append({"": f"{model}, {stage}, {_NAMES.get(rule, 'factor ' + rule[6:])}", **shown})
    return f"""Perplexity per byte in the stretch that ends at a position; the last column compares
the stretch that ends at 8 (continued: 4) times the training length with the one that ends at it:

{plots.table(lines)}"""
