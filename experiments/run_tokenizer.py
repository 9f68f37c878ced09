"""The tokenizer that a run was trained with."""

from multiscreen_jax.data import DataConfig, Tokenizer, open_tokenizer
from multiscreen_jax.data.abcdigits import ALPHABET
from multiscreen_jax.data.loading import find_tokenizer
from multiscreen_jax.data.tokenizers import CharacterTokenizer


def run_tokenizer(data: DataConfig) -> Tokenizer:
    """The tokenizer of a run's data, without reading the corpus where that is not needed.

    Raises:
      FileNotFoundError: the corpus is gone and it alone says what the tokens are.
    """
    if data.source == "abcdigits":
        if data.tokenizer == "characters":
            return CharacterTokenizer(ALPHABET, ends_documents=False)
        return open_tokenizer(data.tokenizer)
    try:
        return find_tokenizer(data)
    except FileNotFoundError:
        collected = data.tokenizer == "characters" and data.alphabet is None
        if collected or data.source.endswith(".bin"):
            raise
        return open_tokenizer(data.tokenizer, data.alphabet, data.eos_token)
