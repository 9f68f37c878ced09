"""What every architecture shares: tokens in, logits out."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from multiscreen_jax.layers.logits import logits_of
from multiscreen_jax.models.fit import check_params
from multiscreen_jax.models.output import ModelOutput


class LanguageModel(nn.Module):
    """A decoder whose logits are `trunk` times `output_rows`, transposed, and perhaps capped.

    An architecture adds `config`, `trunk`, `output_rows` and `init_cache`. The loss and generation
    use those two halves apart, so that logits are made only where they are needed.
    """

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        segment_ids: Int[Array, "B T"] | None = None,
        cache: Any = None,
    ) -> ModelOutput:
        """Logits of every next token.

        Args:
            tokens: ids in [0, O).
            segment_ids: documents of a packed row, from 1; 0 is padding.
            cache: continue after what this cache holds (`init_cache`, or a former output's).

        Returns:
            logits [B, T, O] in `promote_types(dtype, float32)`, and the cache to continue with.
        """
        cache = jax.tree.map(_of_jax, cache)
        x, cache = self.trunk(tokens, segment_ids, cache)
        logits = logits_of(x, self.output_rows(), self.logit_cap, self.config.precision)
        return ModelOutput(logits=logits, cache=cache)

    @property
    def logit_cap(self) -> float | None:
        """c of the cap c tanh(logits / c); None: there is none."""
        return getattr(self.config, "logit_cap", None)

    def check_own_params(self) -> None:
        """ValueError if this call's parameters are those of another model."""
        if not self.is_mutable_collection("params"):  # then Flax makes what is missing
            check_params(self, self.variables.get("params", {}))

    def trunk(
        self,
        tokens: Int[Array, "B T"],
        segment_ids: Int[Array, "B T"] | None = None,
        cache: Any = None,
        key: Key[Array, ""] | None = None,
    ) -> tuple[Float[Array, "B T D"], Any]:
        """Everything before the output projection, and the new cache.

        `key` drives what is random in training; without one nothing is.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define trunk")

    def output_rows(self) -> Float[Array, "O D"]:
        """The rows whose products with the trunk's output are the logits."""
        raise NotImplementedError(f"{type(self).__name__} does not define output_rows")

    @property
    def document_limit(self) -> tuple[int, str] | None:
        """Most tokens that a document may have, and why; None: any number."""
        limits = [
            mixer.document_limit
            for stage in self.config.stages()
            for mixer in stage.mixers(self.config.common)
        ]
        return min((limit for limit in limits if limit is not None), default=None)

    @property
    def longest_document(self) -> int | None:
        """Most tokens that a document may have; None: any number."""
        return self.document_limit[0] if self.document_limit else None

    def for_one_document(self) -> "LanguageModel":
        """The same model where no row holds more than one document, as in generation."""
        config = getattr(self.config, "for_one_document", lambda: self.config)()
        return self if config is self.config else self.clone(config=config)


def _of_jax(leaf: Any) -> Any:
    """JAX's array of numpy's, which a cache that was saved may hold."""
    return jnp.asarray(leaf) if isinstance(leaf, np.ndarray) else leaf
