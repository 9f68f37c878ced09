"""The smallest model with the library's protocol; it tells documents apart."""

import dataclasses

import flax.linen as nn

from multiscreen_jax.layers.parameters import weight


@dataclasses.dataclass(frozen=True)
class BigramConfig:
    vocab_size: int = 40
    precision: str | None = None


class Rows(nn.Module):
    """Two tables under the names that the library's models use."""

    config: BigramConfig

    def setup(self):
        shape = (self.config.vocab_size, 8)
        init, axes = nn.initializers.normal(1.0), ("vocabulary", "embed")
        self.rows = weight(self, "rows", init, shape, axes, "float32")
        zeros = nn.initializers.zeros
        self.log_input_scale = weight(
            self, "log_input_scale", zeros, (), (), "float32", decay=False
        )

    def __call__(self):
        return self.rows


class Bigram(nn.Module):
    """logits = rows @ (row of the token x number of its document)."""

    config: BigramConfig

    def setup(self):
        self.embedding = Rows(self.config)

    def trunk(self, tokens, segment_ids=None, cache=None, key=None):
        x = self.embedding()[tokens]
        return (x if segment_ids is None else x * segment_ids[..., None]), cache

    def output_rows(self):
        return self.embedding()

    def __call__(self, tokens, segment_ids=None):
        return self.trunk(tokens, segment_ids)[0] @ self.output_rows().T
