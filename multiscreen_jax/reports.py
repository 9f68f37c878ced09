"""What a training run can report of a model besides its loss: found by the model, not by a name.

It loads the figures' library only for runs that ask for a report.
"""

from collections.abc import Callable
from typing import Any

from multiscreen_jax.models import Multiscreen


def health_of(model: Any) -> Callable[..., dict[str, Any]] | None:
    """`health(model, params, tokens, segment_ids=None)` where there is one for such a model."""
    if not isinstance(model, Multiscreen):
        return None
    from multiscreen_jax.inspect.health import health

    return health


def pictures_of(model: Any) -> Callable[..., list[Any]] | None:
    """`save_pictures(model, params, tokens, folder, ...)` where there is one for such a model."""
    if not isinstance(model, Multiscreen):
        return None
    from multiscreen_jax.inspect.pictures import save_pictures

    return save_pictures
