"""Small tokenizer.json files of every model type, trained on a few lines in milliseconds."""

import functools
import json
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

LINES = (
    "The cat sat on the mat, and the dog didn't run to the log; it's  Ann's.",
    "今天天气很好，我们去公园散步。 naïve café — 日本語",
    "def f(x):\n\treturn {'a': [1, 2.5e-3]}  # <tag></tag>\n",
) * 3
SAMPLES = {
    "english": "The cat's log; it  isn't the dog's mat.\n\n\tAnn ran. " * 9,
    "chinese": "今天天气很好，繁體中文也一樣。日本語のテキスト、한국어 " * 9,
    "emoji": "😀👩‍👩‍👧🏽 🇩🇪 e\u0301 ﬁ ① ﷺ 𝕏 \u00a0\u2003½ ＡＢＣ ᄒ\u1161\u11ab naïve " * 9,
    "code": "def f(x):\n\tif x == 0:\n        return {'a': [1, 2.5e-3]}  # <tag>&amp;\n\n" * 9,
    "names": "a</s>b <pad> <unk> [UNK] [SEP]<|endoftext|> </s></s>  <pad>x " * 9,
}
SPECIAL = ("<unk>", "</s>", "<pad>", "[UNK]", "[SEP]", "<|endoftext|>")


def _bpe_trainer(**settings):
    return trainers.BpeTrainer(
        vocab_size=400, special_tokens=list(SPECIAL), show_progress=False, **settings
    )


def _byte_fallback() -> Tokenizer:
    """Converts as SentencePiece's BPE files are: no pre-tokenizer, unknown text as bytes."""
    byte_pieces = [f"<0x{byte:02X}>" for byte in range(256)]
    letters = sorted(set("▁abcdefghilmnorstuT'.,;天今日本"))
    words = ["th", "▁th", "▁the", "at", "▁▁", "天天"]
    vocab = {p: i for i, p in enumerate([*SPECIAL, *byte_pieces, *letters, *words])}
    merges = [("t", "h"), ("▁", "th"), ("▁th", "e"), ("a", "t"), ("▁", "▁"), ("天", "天")]
    model = models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens(list(SPECIAL))
    return tokenizer


def _byte_level(add_prefix_space: bool = False) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(LINES, _bpe_trainer(initial_alphabet=alphabet))
    return tokenizer


def _byte_level_nfkc() -> Tokenizer:
    tokenizer = _byte_level()
    tokenizer.normalizer = normalizers.NFKC()
    return tokenizer


def _byte_level_prefix() -> Tokenizer:
    return _byte_level(add_prefix_space=True)


def _word_suffix() -> Tokenizer:
    """Reads like CLIP's: lower case, no white space, "</w>" at the end of words, over bytes."""
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    words = Regex(r"[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(words, "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.BPEDecoder("</w>")
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = _bpe_trainer(initial_alphabet=alphabet, end_of_word_suffix="</w>")
    tokenizer.train_from_iterator(LINES, trainer)
    return tokenizer


def _word_piece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # so that "[SEP]" stays one word
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=300, special_tokens=list(SPECIAL), show_progress=False
    )
    tokenizer.train_from_iterator(LINES, trainer)
    return tokenizer


def _word_level() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.WordLevelTrainer(special_tokens=list(SPECIAL), show_progress=False)
    tokenizer.train_from_iterator(LINES, trainer)
    return tokenizer


def _unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=200, special_tokens=list(SPECIAL), unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(LINES, trainer)
    return tokenizer


def _unigram_nfkc() -> Tokenizer:
    tokenizer = _unigram()
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace(Regex(r"[\u200d\ufeff]"), "")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
    )
    return tokenizer


KINDS = {
    "byte fallback": _byte_fallback,
    "byte level": _byte_level,
    "byte level, NFKC": _byte_level_nfkc,
    "byte level, prefix space": _byte_level_prefix,
    "word suffix": _word_suffix,
    "WordPiece": _word_piece,
    "WordLevel": _word_level,
    "Unigram": _unigram,
    "Unigram, NFKC": _unigram_nfkc,
}


@functools.cache
def content(kind: str) -> str:
    """The tokenizer.json of a kind."""
    return KINDS[kind]().to_str()


def write(path: Path, kind: str, **changes) -> Path:
    """Writes the tokenizer.json of a kind; changes replace entries, of its model too."""
    spec = json.loads(content(kind))
    for name, value in changes.items():
        (spec if name in spec else spec["model"])[name] = value
    path.write_text(json.dumps(spec))
    return path
