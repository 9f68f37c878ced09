"""Tiles as a text table."""

import numpy as np

from multiscreen_jax.inspect.relevance import Acceptance

_HEADINGS = ("layer", "head", "window", "width", "accepted", "silent")


def tile_table(found: Acceptance) -> str:
    """One line per tile: layer, head, window in tokens, width, shares of pairs and queries.

    "accepted" is the share of the pairs inside the window that are accepted, "silent" the share of
    queries that accept nothing.
    """
    accepted, silent = found.share_accepted(), found.share_silent()
    rows = [
        (
            str(layer),
            str(head),
            format_window(found.window[layer, head]),
            f"{found.width[layer, head]:.3f}",
            f"{accepted[layer, head]:.2%}",
            f"{silent[layer, head]:.1%}",
        )
        for layer, head in np.ndindex(found.window.shape)
    ]
    return text_table(_HEADINGS, rows)


def tile_rows(found: Acceptance) -> list[dict[str, float]]:
    """The same as records, one per tile, with exact numbers (for a CSV file)."""
    columns = {
        "window": found.window,
        "width": found.width,
        "pairs_in_window": found.in_window,
        "pairs_accepted": found.accepted,
        "share_accepted": found.share_accepted(),
        "share_silent": found.share_silent(),
    }
    return [
        {"layer": layer, "head": head}
        | {name: column[layer, head].item() for name, column in columns.items()}
        for layer, head in np.ndindex(found.window.shape)
    ]


def text_table(headings: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Right-aligned columns, two spaces apart."""
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in (headings, *rows)
    )


def format_window(window: float) -> str:
    """A window in tokens: 2.31, 45.7, 12,800 or inf."""
    if not np.isfinite(window):
        return "inf"
    return (
        f"{window:.2f}" if window < 10 else f"{window:.1f}" if window < 1000 else f"{window:,.0f}"
    )
