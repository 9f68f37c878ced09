import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multiscreen_jax.data.packing import (
    WindowSource,
    join_documents,
    split_point,
    token_dtype,
)

EOS = 99


def make_store(lengths):
    documents = [np.arange(1, length + 1) for length in lengths]
    return join_documents("corpus", documents, EOS, 100)


def test_documents_are_joined_by_their_ends():
    store = make_store([3, 0, 2])
    assert store.tokens.tolist() == [1, 2, 3, EOS, 1, 2, EOS]
    assert store.starts.tolist() == [0, 4]
    assert store.tokens.dtype == np.uint16
    assert token_dtype(1 << 16) == np.uint16
    assert token_dtype((1 << 16) + 1) == np.uint32


def test_windows_share_one_token():
    rows = WindowSource(make_store([3, 2, 4]), 4)
    assert len(rows) == 2  # the last three targets fill no window
    assert rows[0]["tokens"].tolist() == [1, 2, 3, EOS, 1]
    assert rows[1]["tokens"].tolist() == [1, 2, EOS, 1, 2]
    assert set(rows[0]) == {"tokens"}


def test_complete_windows_pad_the_end_and_the_last_batch():
    rows = WindowSource(make_store([3, 2, 4]), 4, complete=True, batch_size=4)
    assert len(rows) == 4
    assert rows[2]["tokens"].tolist() == [2, 3, 4, EOS, 0]
    assert rows[2]["loss_mask"].tolist() == [1, 1, 1, 0]
    assert rows[3]["tokens"].tolist() == [0] * 5
    assert rows[3]["loss_mask"].tolist() == [0] * 4
    assert rows[0]["loss_mask"].tolist() == [1] * 4


def test_segments_restart_in_every_row_and_ends_belong_to_their_document():
    rows = WindowSource(make_store([3, 2, 4]), 4, segments=True, complete=True, batch_size=4)
    assert rows[0]["segment_ids"].tolist() == [1, 1, 1, 1, 2]
    assert rows[1]["segment_ids"].tolist() == [1, 1, 1, 2, 2]
    assert rows[2]["segment_ids"].tolist() == [1, 1, 1, 1, 0]
    assert rows[3]["segment_ids"].tolist() == [0] * 5
    assert rows[0]["segment_ids"].dtype == np.int32


@settings(max_examples=100, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=12),
    length=st.integers(1, 12),
    batch=st.integers(1, 5),
)
def test_every_target_counts_exactly_once(lengths, length, batch):
    store = make_store(lengths)
    if len(store) <= length:
        return
    rows = WindowSource(store, length, segments=True, complete=True, batch_size=batch)
    rows = [rows[index] for index in range(len(rows))]
    assert len(rows) % batch == 0
    scored = [row["tokens"][1:][row["loss_mask"] > 0] for row in rows]
    np.testing.assert_array_equal(np.concatenate(scored), store.tokens[1:])
    for row in rows:
        # A segment ends where an end-of-document token stands, and padding is 0.
        real = row["segment_ids"] > 0
        expected = 1 + np.cumsum(np.append(0, row["tokens"][:-1] == EOS))
        np.testing.assert_array_equal(row["segment_ids"][real], expected[real])
        assert not np.any(np.diff(real.astype(int)) > 0)


def test_split_point_takes_documents_or_tokens():
    starts = np.arange(0, 200, 10)
    assert split_point(starts, 200, 0.1) == 180  # two of twenty documents
    assert split_point(starts, 200, 0.04) == 192  # not one document: tokens
    assert split_point(None, 200, 0.1) == 180
    assert split_point(starts, 200, 0.0) == 200
    assert split_point(np.array([0]), 200, 0.25) == 150


def test_a_part_keeps_documents():
    store = make_store([3, 2, 4])
    tail = store.cut(2, 10)
    assert tail.tokens.tolist() == store.tokens[2:10].tolist()
    assert tail.starts.tolist() == [0, 2, 5]
    assert tail.checksum != store.checksum
    # A document that begins exactly at the cut counts once, as the first.
    assert store.cut(4, 12).starts.tolist() == [0, 3]


@pytest.mark.parametrize("segments", [False, True])
def test_a_batch_larger_than_the_corpus_is_refused(segments):
    store = make_store([41])  # 42 tokens: 10 rows of T = 4, the last target is in the tenth
    assert len(WindowSource(store, 4, segments, batch_size=10)) == 10
    with pytest.raises(ValueError, match="batch_size is 11, but the corpus has 10 rows") as caught:
        WindowSource(store, 4, segments, batch_size=11)
    assert "allowed: a batch_size of at most 10" in str(caught.value)
    assert "\n" not in str(caught.value)
    # Validation counts every target once: its last batch, and so its only one, is filled up.
    assert len(WindowSource(store, 4, segments, complete=True, batch_size=16)) == 16


def test_errors_name_the_corpus():
    with pytest.raises(ValueError, match="corpus: the corpus is empty"):
        make_store([0, 0])
    with pytest.raises(ValueError, match=r"has 4 tokens, fewer than one row .* = 5"):
        WindowSource(make_store([3]), 4)
    assert len(WindowSource(make_store([4]), 4)) == 1
