import dataclasses

import pytest

from multiscreen_jax.data import AbcDigitsConfig, DataConfig, open_pipeline

BAD_FIELDS = [
    ({"source": ""}, "DataConfig.source is ''; allowed: a non-empty string"),
    ({"source": 3}, "DataConfig.source is 3"),
    ({"valid_source": ""}, "DataConfig.valid_source is ''.* or None"),
    ({"valid_fraction": 1.0}, "DataConfig.valid_fraction is 1.0; allowed: a number from 0.0"),
    ({"valid_fraction": float("nan")}, "DataConfig.valid_fraction is nan"),
    ({"text_field": ""}, "DataConfig.text_field is ''"),
    ({"tokenizer": "gpt3"}, "tokenizer is 'gpt3'.*gpt2.*tokenizer.json.*did you mean gpt2"),
    ({"alphabet": "ab"}, "alphabet is given with tokenizer 'bytes'"),
    ({"alphabet": "aba", "tokenizer": "characters"}, "alphabet is 'aba'.*every character once"),
    ({"eos_token": "</s>"}, "eos_token is given with tokenizer 'bytes'"),
    ({"sequence_length": 0}, "sequence_length is 0; allowed: an integer >= 1"),
    ({"sequence_length": 2.5}, "sequence_length is 2.5"),
    ({"batch_size": -1}, "batch_size is -1; allowed: an integer >= 1"),
    ({"batch_size": True}, "batch_size is True"),
    ({"packing": "segment"}, "packing is 'segment'; allowed: stream, segments.*mean segments"),
    ({"seed": 2**32}, "seed is 4294967296; allowed: an integer from 0 to 4294967295"),
    ({"prefetch": -1}, "prefetch is -1"),
    ({"abcdigits": 6}, "abcdigits is 6; allowed: an AbcDigitsConfig"),
    ({"source": "abcdigits", "tokenizer": "gpt2"}, "tokenizer is 'gpt2' with source 'abcdigits'"),
    ({"source": "abcdigits", "packing": "segments"}, "packing is 'segments' with source"),
    ({"source": "abcdigits", "valid_source": "sotu"}, "valid_source is 'sotu' with source"),
    ({"source": "sotu", "valid_source": "abcdigits"}, "valid_source is 'abcdigits' with"),
    ({"mqar": 6}, "mqar is 6; allowed: a MqarConfig"),
    ({"source": "mqar", "sequence_length": 64}, "tokenizer is 'bytes' with source 'mqar'; .*numb"),
    ({"source": "mqar", "tokenizer": "numbers"}, "sequence_length is 256 .* allowed: 64, the long"),
    ({"tokenizer": "numbers"}, "tokenizer is 'numbers'; allowed: bytes, characters, gpt2"),
    ({"source": "abcdigits", "sequence_length": 20}, "sequence_length is 20; .* >= 25"),
]

BAD_ABCDIGITS = [
    ({"num_digits": 0}, "AbcDigitsConfig.num_digits is 0; allowed: an integer from 1 to 9"),
    ({"max_letters": 27}, "max_letters is 27; allowed: an integer from 2 to 26"),
    ({"num_digits": 1, "max_letters": 10}, "max_letters is 10; allowed: an integer from 2 to 9"),
    ({"min_letters": 9, "max_letters": 8}, "min_letters is 9; allowed: an integer from 2 to 8"),
    ({"halving_share": 1.5}, "halving_share is 1.5"),
    ({"other_weight": "x"}, "other_weight is 'x'"),
    ({"valid_sequences": 0}, "valid_sequences is 0"),
]


@pytest.mark.parametrize(("fields", "message"), BAD_FIELDS, ids=lambda x: str(x)[:40])
def test_every_bad_field_is_one_line(fields, message):
    with pytest.raises(ValueError, match=message) as caught:
        DataConfig(**fields)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("fields", "message"), BAD_ABCDIGITS, ids=lambda x: str(x)[:40])
def test_every_bad_abcdigits_field_is_one_line(fields, message):
    with pytest.raises(ValueError, match=message):
        AbcDigitsConfig(**fields)


def test_configs_are_frozen_values():
    config = DataConfig()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 1
    assert config == DataConfig()
    assert dataclasses.replace(config, seed=1) != config


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "test"}, "split is 'test'; allowed: train, valid"),
        ({"split": "validation"}, "did you mean valid"),
        ({"process_count": 3}, "process_count is 3 with batch_size 16; allowed: a divisor"),
        ({"process_count": 2, "process_index": 2}, "process_index is 2; allowed: 0 to 1"),
    ],
)
def test_bad_arguments_of_open_pipeline(arguments, message):
    with pytest.raises(ValueError, match=message):
        open_pipeline(DataConfig(), **arguments)
