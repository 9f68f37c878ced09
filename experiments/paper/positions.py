"""Perplexity by position beyond the training length ("Screening Is Enough", Fig. 5).

The paper takes long documents of PG-19 and models trained at 2^12 tokens, and again after continued
training on longer rows: Multiscreen stays flat, the Transformer jumps past its training length, and
larger RoPE factors delay that and cost perplexity everywhere. Here: the quickstart's models, 2000
steps at 256 bytes of speeches, then 200 steps at 1024, read to 4096 bytes of the validation split.
The Transformer continues without a RoPE factor; the paper's continues with 8.

At the paper's scale the text is the middle 2^17 + 1 tokens of the documents that are longer. Rows
are cut from one stream, so that `pg19_middles.bin` has to be these middles alone: of every document
the 2^17 tokens from (length - 2^17) // 2 on, one after the other without an end of document, and
one more token at the end; the last target of a row is then the next row's first token. Three lines
beside it make it readable: `multiscreen_jax.data.token_files`.

    python -m experiments.paper run positions

It gave: 3.01 to 3.04 per byte for Multiscreen from the training length to 16 times it; 2.97 at the
training length and 40 at 8 times it for the Transformer. No window had grown beyond 256, so that
the inference rule changes nothing. Factors of RoPE cost far more than they save at this size.
"""

from pathlib import Path

from matplotlib.figure import Figure

from experiments.paper import plots, text_runs
from experiments.paper.study import Row, Run

TITLE = "Perplexity by position"
TRAINED = {"base": 256, "continued": 1024}
LENGTH = 4096
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
        f"--data.sequence-length {TRAINED['continued']} --data.batch-size 4 "
        f"--optim.schedule constant --optim.learning-rate {rate} --mesh.cpu-devices 1 "
        "--train.sample-prompts --train.health-every 0",
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
    edges = " ".join(str(2**n) for n in range(6, 18))
    commands = tuple(
        f"experiments.evaluate {folder} --task positions --data.source pg19_middles.bin "
        f"--sequence-length {2**17} --batch-size 1 --positions.edges 0 {edges} "
        f"--output {{run}}/{name} {option}".strip()
        for name, folder, option in text_runs.asked(config, 0)
    )
    continued = text_runs.continued(config, 0)
    return Run(f"positions-{config}", commands, 0, continued.columns, needs=(continued,))


def measure(run: Run, folder: Path) -> list[Row]:
    rows = []
    for found in sorted(folder.glob("*/positions.json")):
        stage, _, rule = found.parent.name.partition("-")
        facts = {"stage": stage, "rule": rule}
        if run.needs:  # at the paper's scale
            facts["trained"] = text_runs.STAGES[stage]
        rows += [{**facts, **bucket} for bucket in plots.evaluation(found)["rows"]]
    return rows


def figure(rows: list[Row]) -> Figure:
    stages = plots.groups(rows, "stage")
    drawn, axes = plots.panels(len(stages), sharey=True)
    ends = sorted({row["end"] for row in rows})
    first = ends[0] / 2  # a logarithmic axis begins above 0
    found = [row["perplexity"] for row in rows]
    low, high = min(found) / 1.15, 1.6 * max(found)
    for ax, ((stage,), cells) in zip(axes, stages.items(), strict=True):
        for (model, name), one in _lines(cells).items():
            edges = [max(row["start"], first) for row in one] + [one[-1]["end"]]
            dash = _DASHES.get(name, (0, (1, 1)))
            ax.stairs(
                [row["perplexity"] for row in one],
                edges,
                baseline=None,
                color=plots.COLOURS[model],
                lw=1.6 if dash == "-" else 1.0,
                ls=dash,
                label=f"{model}, {name}" if name in _DASHES else None,
            )
        ax.axvline(_trained(cells[0]), color=plots.FAINT, lw=1, ls=(0, (4, 3)))
        ax.set_xscale("log", base=2)
        ax.set_yscale("log")
        powers = [end for end in ends if _is_power(end)]
        ax.set_xticks(powers, [plots.short(end) for end in powers], fontsize=7.5)
        ticks = [n * 10**power for power in range(6) for n in (1, 2, 3, 5)]
        ticks = [tick for tick in ticks if low <= tick <= high]
        ax.set_yticks(ticks, [f"{tick:,}" for tick in ticks])
        ax.minorticks_off()
        ax.set(xlabel="position (tokens; dashed: training length)")
        ax.set(xlim=(first, ends[-1]), ylim=(low, high))
        note = {"transform": ax.transAxes, "fontsize": 7.5, "color": plots.INK}
        ax.text(0.03, 0.95, "dotted: larger factors of RoPE", **note)
        ax.set_title(f"{stage}, trained at {_trained(cells[0]):,}", fontsize=10, color=plots.INK)
    axes[0].set_ylabel("perplexity per token")
    axes[-1].legend(frameon=False, fontsize=7.5, loc="upper left", bbox_to_anchor=(0, 0.5))
    return drawn


_AS_TRAINED = "RoPE as trained"
_NAMES = {"rule": "infinite windows", "learned": "learned windows"}
_DASHES = {"infinite windows": "-", _AS_TRAINED: "-", "learned windows": ":"}


def report(rows: list[Row]) -> str:
    shortest = min(_trained(row) for row in rows)
    lines = []
    for (stage,), cells in plots.groups(rows, "stage").items():
        for (model, name), one in _lines(cells).items():
            shown = {
                f"to {row['end']:,}": f"{row['perplexity']:.2f}"
                for row in one
                if row["end"] >= shortest and _is_power(row["end"])
            }
            times, ratio = _far(one)
            last = {"last / trained": f"{ratio:.3f} at {times}x"}
            lines.append({"": f"{model}, {stage}, {name}", **shown, **last})
    return f"""Perplexity per token in the stretch that ends at a position; the last column compares
the stretch that ends at 8 times the training length, or as far as was read, with the one that ends
at it:

{plots.table(lines)}

{_verdict(rows)}"""


def _verdict(rows: list[Row]) -> str:
    """The paper's findings, and whether the inference rule matters."""
    texts = []
    for (stage,), cells in plots.groups(rows, "stage").items():
        lines = _lines(cells)
        flat = {("multiscreen", "infinite windows"): True, ("transformer", _AS_TRAINED): False}
        for key in flat.keys() & lines.keys():
            times, ratio = _far(lines[key])
            texts.append(
                f"{key[0].capitalize()}, {stage}: {ratio:.2f} times the perplexity at {times} "
                f"times the training length, {'as' if (ratio < 1.1) == flat[key] else 'unlike'} "
                "in the paper."
            )
        texts += _factors(stage, lines)
    return " ".join(sorted(texts) + _rule_changes(rows))


def _factors(stage: str, lines: dict[tuple, list[Row]]) -> list[str]:
    """What a larger factor of RoPE saves at the end, and what it costs within."""
    found = {name: one for (model, name), one in lines.items() if model == "transformer"}
    usual, others = found.pop(_AS_TRAINED, None), found
    if not others:
        return []

    def inside(one: list[Row]) -> float:
        return plots.mean(row["perplexity"] for row in one if row["end"] <= _trained(row))

    name, best = min(others.items(), key=lambda item: item[1][-1]["perplexity"])
    last, usual_last = best[-1]["perplexity"], usual[-1]["perplexity"]
    return [
        f"Transformer, {stage}: in the last stretch the best larger factor, "
        f"{name.removeprefix('factor ')}, has {last:.2f} where RoPE as trained has "
        f"{usual_last:.2f}; within the training length it has {inside(best) / inside(usual):.1f} "
        "times the perplexity."
    ]


def _rule_changes(rows: list[Row]) -> list[str]:
    by_rule = {rule: one for (rule,), one in plots.groups(rows, "rule").items()}
    if not {"rule", "learned"} <= by_rule.keys():
        return []
    pairs = zip(by_rule["rule"], by_rule["learned"], strict=True)
    change = max(abs(a["perplexity"] / b["perplexity"] - 1) for a, b in pairs)
    if change == 0:
        return ["The inference rule changes nothing: no window is longer than the training length."]
    return [f"The inference rule changes Multiscreen's perplexity by at most {change:.2%}."]


def _lines(rows: list[Row]) -> dict[tuple[str, str], list[Row]]:
    """A stage's rows by model and name of the rule. The smallest factor of RoPE is as trained."""
    found = plots.groups(rows, "model", "rule")
    factors = sorted(
        (rule for _, rule in found if rule not in _NAMES),
        key=lambda rule: int(rule.removeprefix("factor")),
    )
    names = dict(_NAMES)
    for rule in factors:
        names[rule] = _AS_TRAINED if rule == factors[0] else rule.replace("factor", "factor ")
    order = [*_NAMES, *factors]
    ordered = sorted(found, key=lambda key: (key[0], order.index(key[1])))
    return {(model, names[rule]): found[model, rule] for model, rule in ordered}


def _far(rows: list[Row]) -> tuple[int, float]:
    """At 8 times the training length, or as far as was read: how many times, and the ratio."""
    at, trained = {row["end"]: row["perplexity"] for row in rows}, _trained(rows[0])
    end = min(8 * trained, max(at))
    return end // trained, at[end] / at[trained]


def _trained(row: Row) -> int:
    return row.get("trained") or TRAINED[row["stage"]]


def _is_power(number: int) -> bool:
    return number & (number - 1) == 0
