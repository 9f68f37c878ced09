"""What every model's forward pass returns."""

from typing import Any

from flax import struct
from jaxtyping import Array, Float


@struct.dataclass
class ModelOutput:
    """Logits of one forward pass and, when a cache went in, the cache that continues it.

    Attributes:
        logits: [B, T, O], `promote_types(compute dtype, float32)`; entry [b, t] predicts the token
            after position t. A row that ran past the end of its cache holds NaN.
        cache: the pytree to pass to the next call, None when the call had no cache.
    """

    logits: Float[Array, "B T O"]
    cache: Any = None
