"""A context of 100,000 tokens: full forward pass and decoding ("Screening Is Enough", Table 4).

The paper times a full forward pass over 100,000 tokens on an RTX 4090: 4.04 s for a Transformer of
353M with PyTorch's fused attention, 1.72 s and 1.26 s for a Multiscreen of 286M, of like loss.
Here: the two shipped models, also of like size and loss, on one CPU; the Multiscreen with the
windows that it learned, none of which reached its training length, and with all of them infinite,
which is the most that learning could have made them cost.

At the paper's scale the trained models are timed, base and continued, Multiscreen by its inference
rule: once each, where the paper has 100 timings of three models, in bfloat16 from weights in
float32, where the paper's are in bfloat16.

    python -m experiments.paper run long_context

It gave: 2.4 s for Multiscreen with its windows, 129 s for the Transformer with its 24 heads, and
276 s for Multiscreen with all of its 36 windows infinite; a token more takes 0.36, 56 and 104 ms.
"""

from pathlib import Path

from matplotlib.figure import Figure

from experiments.paper import plots, text_runs
from experiments.paper.study import Row, Run

TITLE = "100,000 tokens"
_MODELS = {
    "multiscreen": ("multiscreen-speeches", ""),
    "multiscreen, all windows infinite": ("multiscreen-speeches", "--windows infinite"),
    "transformer": ("transformer-speeches", ""),
}


def runs(scale: str) -> list[Run]:
    if scale == "small":
        return [_run(name, model, option) for name, (model, option) in _MODELS.items()]
    found = []
    for config, option in (("multiscreen_286m", "--windows rule"), ("transformer_353m", "")):
        for stage in text_runs.STAGES:
            trained = getattr(text_runs, stage)(config, 0)
            name = f"{config.partition('_')[0]}, {stage}"
            found.append(_run(name, f"{{runs}}/{trained.name}/train", option, (trained,)))
    return found


def _run(name: str, model: str, option: str, needs: tuple[Run, ...] = ()) -> Run:
    commands = tuple(
        f"experiments.bench.long_context {model} --part {part} "
        f"--output {{run}}/{part}.json {option}".strip()
        for part in ("forward", "decode")
    )
    short = name.replace(", ", "-").replace(" ", "-")
    return Run(f"long_context-{short}", commands, 0, {"model": name}, needs)


def measure(run: Run, folder: Path) -> list[Row]:
    forward, decode = (plots.evaluation(folder / f"{p}.json") for p in ("forward", "decode"))
    return [
        {
            "parameters": forward["parameters"],
            "length": forward["length"],
            "forward_seconds": round(forward["forward_seconds"], 3),
            "forward_peak_mb": forward["peak_mb"],
            "prefill_seconds": round(decode["prefill_seconds"], 3),
            "decode_ms": round(decode["decode_ms"], 4),
            "cache_mb": round(decode["cache_mb"], 3),
            "decode_peak_mb": decode["peak_mb"],
        }
    ]


def figure(rows: list[Row]) -> Figure:
    drawn, axes = plots.panels(3, width=3.2, height=2.6)
    columns = ("forward_seconds", "decode_ms", "cache_mb")
    titles = ("full forward (s)", "one more token (ms)", "cache (MB)")
    for ax, column, title in zip(axes, columns, titles, strict=True):
        names = [row["model"].replace(", ", ",\n") for row in rows]
        values = [row[column] for row in rows]
        colours = [plots.COLOURS[row["model"].partition(",")[0]] for row in rows]
        bars = ax.barh(names, values, color=colours, height=0.55)
        ax.bar_label(bars, [f"{value:.3g}" for value in values], fontsize=8, padding=2)
        ax.set_xlim(0, 1.2 * max(values))
        ax.set_title(title, fontsize=9.5, color=plots.INK)
        ax.invert_yaxis()
    for ax in axes[1:]:
        ax.set_yticklabels([])
    return drawn


def report(rows: list[Row]) -> str:
    lines = [
        {
            "": row["model"],
            "parameters": f"{row['parameters']:,}",
            "full forward": f"{row['forward_seconds']:.2f} s",
            "peak memory": f"{row['forward_peak_mb']:,} MB",
            "prefill in chunks": f"{row['prefill_seconds']:.2f} s",
            "one more token": f"{row['decode_ms']:.2f} ms",
            "cache": f"{row['cache_mb']:.2f} MB",
        }
        for row in rows
    ]
    found = {row["model"]: row for row in rows}
    texts = []
    for name, row in found.items():
        twin = name.replace("multiscreen", "transformer")
        other = found.get(twin, found.get("transformer"))
        if name != twin and other:
            times = (other[column] / row[column] for column in ("forward_seconds", "decode_ms"))
            texts.append("{:.1f} and {:.1f} times that of {}".format(*times, name))
    text = f"Single runs, one after the other:\n\n{plots.table(lines)}"
    if texts:
        text += (
            "\n\nThe Transformer's full forward pass and one more token take "
            f"{'; '.join(texts)}. In the paper, on a GPU, the forward pass takes 2.3 times that of "
            "Multiscreen, after continued training 3.2 times."
        )
    return text
