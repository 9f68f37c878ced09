import dataclasses
import hashlib
import io
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from experiments import prepare_shards
from experiments.prepare_shards import ShardsConfig, cut_inputs, prepare
from multiscreen_jax.data import DataConfig, open_pipeline
from multiscreen_jax.data.sources import file_extent, read_file
from multiscreen_jax.ownership import FolderInUse, owned
from multiscreen_jax.train.errors import is_ours
from tests.data import tokenizer_files
from tests.data.corpora import (
    TEXTS,
    byte_level_tokenizer,
    write_array_record,
    write_json_lines,
    write_parquet,
)

ROOT = Path(__file__).parents[2]
RECORDS = ".array_record"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Files of every kind, 40 different documents each."""
    folder = tmp_path_factory.mktemp("corpus")
    texts = [
        [f"{kind} {n} " + text * (1 + n % 7) for n, text in enumerate(TEXTS)] for kind in "abcdefg"
    ]
    write_array_record(folder / "a.array_record", texts[0])
    write_json_lines(folder / "b.jsonl", [*texts[1], "", "end"])
    write_json_lines(folder / "c.jsonl.gz", texts[2])
    write_json_lines(folder / "d.jsonl.xz", texts[3])
    write_parquet(folder / "e.parquet", texts[4])
    (folder / "f.txt").write_text(texts[5][0])
    (folder / "g.jsonl").write_text("")
    return folder


@pytest.fixture
def in_process(monkeypatch):
    """Shards are made by a thread: the same functions, without the time a process takes."""
    monkeypatch.setattr(prepare_shards, "_workers", lambda count: ThreadPoolExecutor(1))


def run(inputs, output, **options):
    options = {"tokenizer": "bytes", "shards": 5, "record_tokens": 64, **options}
    config = ShardsConfig((str(inputs),), output, **options)
    return prepare(config, Console(file=io.StringIO()))


def checksums(folder):
    """SHA-256 of every file of a dataset."""
    files = [path for path in folder.iterdir() if path.name != ".lock"]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def command(inputs, output, *options):
    program = [sys.executable, "-m", "experiments.prepare_shards", str(inputs)]
    return [*program, "--output", str(output), "--tokenizer", "bytes", *options]


def ends(group):
    """Whether no process of a group is left, within a minute; otherwise they are killed."""
    for _ in range(600):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    os.killpg(group, signal.SIGKILL)
    return False


@pytest.mark.parametrize("parts", [1, 2, 7, 300])
def test_parts_side_by_side_give_every_document_once(corpus, parts):
    for file in sorted(corpus.iterdir()):
        whole = [document.text for document in read_file(file)]
        extent = file_extent(file)
        cuts = [extent * k // parts for k in range(parts + 1)]
        pieces = [
            [document.text for document in read_file(file, "text", first, last)]
            for first, last in itertools.pairwise(cuts)
        ]
        assert list(itertools.chain(*pieces)) == whole


def test_row_groups_outside_a_part_are_not_read(tmp_path):
    import pyarrow.parquet

    table = pyarrow.table({"text": [f"text {n}" for n in range(95)]})
    pyarrow.parquet.write_table(table, tmp_path / "c.parquet", row_group_size=10)
    given = [document.text for document in read_file(tmp_path / "c.parquet", "text", 28, 51)]
    assert given == [f"text {n}" for n in range(28, 51)]


def test_inputs_are_cut_into_equal_stretches_in_order():
    inputs = [
        {"file": "a.jsonl", "bytes": 100, "extent": 100},
        {"file": "empty.jsonl", "bytes": 0, "extent": 0},
        {"file": "b.parquet", "bytes": 100, "extent": 10},  # ten bytes a row
        {"file": "c.jsonl.gz", "bytes": 7, "extent": 40},  # as long as its text
    ]
    assert cut_inputs(inputs, 3) == [
        (("a.jsonl", 0, 80),),
        (("a.jsonl", 80, 100), ("b.parquet", 0, 6)),
        (("b.parquet", 6, 10), ("c.jsonl.gz", 0, 40)),
    ]
    for shards in (1, 2, 7, 500):
        parts = [part for parts in cut_inputs(inputs, shards) for part in parts]
        for entry in inputs:
            own = [part[1:] for part in parts if part[0] == entry["file"]]
            ends = [end for _, end in own]
            assert [begin for begin, _ in own] == [0, *ends[:-1]] if own else not entry["extent"]
            assert ends[-1:] == [entry["extent"]] * bool(own)


@pytest.mark.parametrize("packing", ["stream", "segments"])
def test_shards_of_a_corpus_give_the_batches_of_its_documents(
    corpus, tmp_path, packing, in_process
):
    run(corpus, tmp_path / "out", shards=9)
    direct = DataConfig(
        source=str(corpus), valid_fraction=0.1, packing=packing, sequence_length=50, batch_size=4
    )
    sharded = dataclasses.replace(direct, source=str(tmp_path / "out"))
    for split in ("train", "valid"):
        one, other = open_pipeline(direct, split), open_pipeline(sharded, split)
        assert one.num_batches == other.num_batches > 1
        for index in range(one.num_batches):
            for key, value in one.batch(index).items():
                np.testing.assert_array_equal(other.batch(index)[key], value)


@pytest.mark.slow
def test_killed_and_continued_with_other_workers_gives_the_same_bytes(corpus, tmp_path, in_process):
    options = ("--shards", "40", "--record-tokens", "64")
    run(corpus, tmp_path / "whole", shards=40)
    killed = tmp_path / "killed"
    words = command(corpus, killed, *options, "--workers", "3")
    process = subprocess.Popen(words, cwd=ROOT, start_new_session=True)
    while len(list(killed.glob("*.receipt.json"))) < 3:
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert ends(process.pid)  # workers too: they would write what the next command writes
    receipts = sorted(killed.glob("*.receipt.json"))
    assert 3 <= len(receipts) < 40
    assert not (killed / "tokens.json").exists()
    # One finished shard is damaged, another has lost its receipt: both are made again.
    finished = [path.with_name(path.name.replace(".receipt.json", RECORDS)) for path in receipts]
    finished[0].write_bytes(finished[0].read_bytes()[:-1])
    receipts[1].unlink()
    before = [path.stat().st_ino for path in finished[2:]]
    subprocess.run(command(corpus, killed, *options, "--workers", "1"), cwd=ROOT, check=True)
    assert checksums(killed) == checksums(tmp_path / "whole")
    assert [path.stat().st_ino for path in finished[2:]] == before  # the others were kept


def test_a_finished_dataset_is_left_alone(corpus, tmp_path, in_process):
    facts = run(corpus, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir() if path.name != ".lock"}
    assert run(corpus, tmp_path) == facts
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert {path.name for path in before} == {
        "tokens.json",
        "tokens.plan.json",
        *(f"tokens-{index:05}-of-00005.array_record" for index in range(5)),
    }
    with pytest.raises(ValueError, match=r"has shards of other shards, record_tokens; allowed: "):
        run(corpus, tmp_path, shards=6, record_tokens=32)


@pytest.mark.parametrize("plan", ["[]", "{", "[" * 10**5, "", "7", b"\xff"])
def test_a_plan_that_is_none_is_named(corpus, tmp_path, in_process, plan):
    path = tmp_path / "tokens.plan.json"
    path.write_bytes(plan if isinstance(plan, bytes) else plan.encode())
    with pytest.raises(ValueError, match=r"tokens\.plan\.json: ") as caught:
        run(corpus / "f.txt", tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("receipt", ["[]", "{", "[" * 10**5, '{"checksum": "x"}'])
def test_a_receipt_that_is_none_counts_for_nothing(corpus, tmp_path, in_process, receipt):
    expected = run(corpus / "f.txt", tmp_path / "whole")
    (tmp_path / "again").mkdir()
    name = "tokens-00001-of-00005"
    (tmp_path / "again" / f"{name}.array_record").write_bytes(b"half")
    (tmp_path / "again" / f"{name}.receipt.json").write_text(receipt)
    assert run(corpus / "f.txt", tmp_path / "again") == expected


def test_a_tokenizer_json_comes_along(tmp_path, in_process):
    source = write_json_lines(tmp_path / "c.jsonl")
    tokenizer = byte_level_tokenizer(tmp_path / "small.json")
    run(source, tmp_path / "out", tokenizer=str(tokenizer))
    moved = (tmp_path / "out").rename(tmp_path / "moved")
    pipeline = open_pipeline(DataConfig(source=str(moved), sequence_length=16))
    assert pipeline.vocab_size == 300
    assert "Batman" in pipeline.tokenizer.decode(pipeline.batch(0)["tokens"].ravel())


def test_bad_input_stops_and_loses_nothing(tmp_path, in_process):
    lines = [json.dumps({"text": text}) + "\n" for text in TEXTS]
    bad = tmp_path / "bad.jsonl"
    bad.write_text("".join([*lines[:30], '{"text": 7}\n', *lines[31:]]))
    place = sum(map(len, lines[:30]))
    out = tmp_path / "out"
    with pytest.raises(ValueError, match=rf"bad.jsonl at byte {place}: field 'text' is int"):
        run(bad, out)
    assert not (out / "tokens.json").exists()
    assert len(list(out.glob("*.receipt.json"))) == 4
    with pytest.raises(ValueError, match="not finished; run experiments"):
        open_pipeline(DataConfig(source=str(out)))
    bad.write_text(bad.read_text().replace('{"text": 7}', " " * 11))
    assert run(bad, out)["num_documents"] == 39  # as many bytes: the same command continues
    empty = write_json_lines(tmp_path / "empty.jsonl", ["", ""])
    with pytest.raises(ValueError, match="the corpus is empty: 1 files without any text"):
        run(empty, tmp_path / "none")
    (tmp_path / "cut.jsonl.gz").write_bytes(
        write_json_lines(tmp_path / "c.jsonl.gz").read_bytes()[:99]
    )
    with pytest.raises(ValueError, match=r"cut.jsonl.gz: cannot be decompressed: .*end-of-stream"):
        run(tmp_path / "cut.jsonl.gz", tmp_path / "cut")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shards": 0}, "ShardsConfig.shards is 0; allowed: an integer from 1 to 99999"),
        ({"workers": 0}, "ShardsConfig.workers is 0; allowed: an integer >= 1"),
        ({"record_tokens": 0}, "ShardsConfig.record_tokens is 0; allowed: an integer >= 1"),
        ({"tokenizer": "characters"}, "tokenizer is 'characters'; allowed: bytes, gpt2, or the"),
        ({"text_field": ""}, "DataConfig.text_field is ''; allowed: a non-empty string"),
    ],
)
def test_bad_settings(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        ShardsConfig(("x",), tmp_path, **{"shards": 1, **options})


def test_one_process_writes_a_folder(corpus, tmp_path, in_process):
    with (
        owned(tmp_path),
        pytest.raises(FolderInUse, match="is being written by another process"),
    ):
        run(corpus, tmp_path)
    run(corpus, tmp_path)  # the lock ended with its holder


def test_a_worker_that_dies_is_reported(tmp_path):
    with (
        pytest.raises(ValueError, match=r"a worker died, .* continues"),
        prepare_shards._workers(1) as pool,
    ):
        pool.submit(os._exit, 9).result()


def test_what_a_worker_refuses_is_one_line(tmp_path):
    with pytest.raises(ValueError, match="invalid literal") as caught:  # noqa: SIM117
        with prepare_shards._workers(1) as pool:
            pool.submit(int, "x").result()
    assert is_ours(caught.value)


def test_bytes_behind_tokens_are_prepared_with_them(tmp_path, in_process):
    texts = [f"The cat {n} sat — 日本, ﬁ. 한 " * (1 + n % 3) for n in range(30)]
    corpus = write_json_lines(tmp_path / "c.jsonl", [*texts, "   "])
    tokenizer = str(tokenizer_files.write(tmp_path / "t.json", "Unigram"))
    facts = run(corpus, tmp_path / "out", tokenizer=tokenizer, record_tokens=16)
    shared = {"sequence_length": 24, "batch_size": 2, "valid_fraction": 0.4}
    direct = DataConfig(source=str(corpus), tokenizer=tokenizer, **shared)
    made = DataConfig(source=str(tmp_path / "out"), **shared)
    for packing in ("stream", "segments"):
        for split in ("train", "valid"):
            one, other = (
                open_pipeline(dataclasses.replace(config, packing=packing), split)
                for config in (direct, made)
            )
            assert one.lost_share == pytest.approx(other.lost_share) == facts["lost_share"]
            for key, value in one.batch(1).items():
                np.testing.assert_array_equal(other.batch(1)[key], value)
        assert other.unigram_bits_per_byte() == one.unigram_bits_per_byte()
    assert 0.05 < facts["lost_share"] < 0.5
    plan = json.loads((tmp_path / "out" / "tokens.plan.json").read_text())
    assert plan["byte_counts"] is True
