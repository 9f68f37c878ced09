"""The tokenizer that a run was trained with."""

from multiscreen_jax.data import DataConfig, Tokenizer, open_tokenizer, synthetic
from multiscreen_jax.data.config import SYNTHETIC
from multiscreen_jax.data.loading import find_tokenizer


def run_tokenizer(data: DataConfig) -> Tokenizer:
    """The tokenizer of a run's data, without reading the corpus where that is not needed.

    Raises:
      FileNotFoundError: the corpus is gone and it alone says what the tokens are.
    """
    if data.source in SYNTHETIC:
        return synthetic.open_tokenizer(data)
    try:
        return find_tokenizer(data)
    except FileNotFoundError:
        collected = data.tokenizer == "characters" and data.alphabet is None
        if collected or data.source.endswith(".bin"):
            raise
        return open_tokenizer(data.tokenizer, data.alphabet, data.eos_token)
