"""Looking inside a Multiscreen: what each tile accepted, and that the rest got exactly nothing.

maps = mj.inspect.relevance_maps(model, params, tokens)     # [N, H, T, T], short prompts
mj.inspect.plot_relevance(maps).savefig("relevance.png")
counts = mj.inspect.acceptance(model, params, tokens)       # any length
print(mj.inspect.tile_table(counts))
mj.inspect.explore(model, params, tokens, texts).save("explorer.html")  # hover a token
"""

from multiscreen_jax.inspect.accepted import AcceptedKeys, accepted_keys
from multiscreen_jax.inspect.explorer import Explorer, explore
from multiscreen_jax.inspect.figures import plot_relevance
from multiscreen_jax.inspect.health import health
from multiscreen_jax.inspect.pictures import save_pictures
from multiscreen_jax.inspect.relevance import (
    Acceptance,
    RelevanceMaps,
    acceptance,
    relevance_maps,
)
from multiscreen_jax.inspect.tables import tile_table
from multiscreen_jax.inspect.window_figures import plot_windows_widths

__all__ = [
    "Acceptance",
    "AcceptedKeys",
    "Explorer",
    "RelevanceMaps",
    "acceptance",
    "accepted_keys",
    "explore",
    "health",
    "plot_relevance",
    "plot_windows_widths",
    "relevance_maps",
    "save_pictures",
    "tile_table",
]
