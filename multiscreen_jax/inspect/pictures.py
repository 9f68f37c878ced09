"""What the tiles of a model look at, written as pictures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from multiscreen_jax.inspect.figures import plot_relevance
from multiscreen_jax.inspect.relevance import relevance_maps
from multiscreen_jax.inspect.window_figures import plot_windows_widths
from multiscreen_jax.paths import require_local

_DOTS_PER_INCH = 130


def save_pictures(
    model: Any,
    params: Any,
    tokens: Any,
    folder: str | Path,
    tokens_text: Sequence[str] | None = None,
    layers: Sequence[int] | None = None,
    title: str | None = None,
) -> tuple[Path, Path]:
    """Writes relevance.png and windows.png for one prompt; the folder is made if missing.

    Args:
        model, params: a Multiscreen and its parameters.
        tokens: integers [T] or [1, T]; about 200 give maps that can be read.
        folder: where the pictures go; older ones of that name are replaced.
        tokens_text: the text of each token.
        layers: which layers' maps; None: all. The windows are always those of the chosen layers.
        title: printed above both.

    Returns:
        The two paths. Errors are those of `relevance_maps`.
    """
    require_local("folder", folder)
    maps = relevance_maps(model, params, tokens, layers)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / "relevance.png", folder / "windows.png"
    plot_relevance(maps, tokens_text, title).savefig(paths[0], dpi=_DOTS_PER_INCH)
    plot_windows_widths(maps.window, maps.width, title).savefig(paths[1], dpi=_DOTS_PER_INCH)
    return paths
