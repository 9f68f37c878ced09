"""Folders as they are cloned from a dataset hub, and folders of plain text."""

import dataclasses

import pytest

from multiscreen_jax.data import DataConfig, describe_data, open_pipeline, open_tokenizer
from multiscreen_jax.data.sources import choose_files, find_files, has_validation, read_documents
from tests.data.corpora import write_json_lines, write_parquet, write_tokens

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7\n"
CARD = "---\nlicense: mit\n---\n# card\n"


def make(folder, *names):
    """Small files by name; what a file holds is its name."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".parquet":
            write_parquet(path, [name])
        elif ".jsonl" in path.name:
            write_json_lines(path, [name])
        else:
            path.write_text(name)
    return folder


def read(folder, split="train"):
    return [document.text for document in read_documents(str(folder), split)]


def test_a_cloned_dataset_trains_on_its_training_split_alone(tmp_path):
    names = [f"data/{split}-00000-of-00001.parquet" for split in ("train", "test")]
    make(tmp_path, *names, ".gitattributes", ".git/notes.txt", "LICENSE")
    (tmp_path / "README.md").write_text(CARD)
    assert read(tmp_path) == ["data/train-00000-of-00001.parquet"]
    left_out = "1 of split test, 1 LICENSE, README.md"
    line = f"1 .parquet in {tmp_path}/data, split train; left out: {left_out}"
    assert str(choose_files(str(tmp_path), "train")) == line


HUBS = [
    ("train.jsonl", "validation.jsonl", "test.jsonl"),
    ("train.jsonl.gz", "valid.jsonl.xz", "eval.jsonl"),
    ("corpus.train.jsonl", "corpus.dev.jsonl", "corpus.test.jsonl"),
    ("data/train-00000-of-00001-a09b74b3ef9c3b56.parquet", "data/val_00.parquet", "test_0.parquet"),
    ("train_sft-00000-of-00001.parquet", "validation_sft.parquet", "test_sft.parquet"),
    ("TRAIN/a.jsonl", "Val/a.jsonl", "Test/a.jsonl"),
    ("en/training/a.jsonl", "en/dev/a.jsonl", "en/testing/a.jsonl"),
    ("my-train.txt", "my-valid.txt", "my-test.txt"),
    ("ptb.train.txt", "ptb.valid.txt", "ptb.test.txt"),
    ("train/pos/1.txt", "val/pos/2.txt", "test/neg/3.txt"),
    ("train/1.md", "val/2.md", "test/3.md"),
    ("train.txt", "dev.txt", "evaluation.txt"),
]


@pytest.mark.parametrize("names", HUBS, ids=lambda names: names[0])
def test_splits_are_respected(tmp_path, names):
    make(tmp_path, *names, "README.md", "LICENSE.txt")
    markdown = names[0].endswith(".md")
    if markdown:  # among Markdown alone a README is a page
        (tmp_path / "README.md").unlink()
        (tmp_path / "LICENSE.txt").unlink()
    assert read(tmp_path) == [names[0]]
    assert read(tmp_path, "valid") == [names[1]]
    assert has_validation(str(tmp_path))
    assert str(choose_files(str(tmp_path), "train")).count("1 of split test, 1 of split valid") == 1


PLAIN = [
    ("a.txt", "b.txt", "deep/c.txt"),
    ("how-to-train.txt", "stress-test.txt", "driving-tests.txt"),
    ("test.txt", "a.txt"),
    ("val.txt",),
    ("index.md", "train.md", "test.md", "README.md", "LICENSE.md"),
    ("README.md",),
    ("a.jsonl", "b.md", "b.txt", "deep/d.parquet"),
    ("train-1.jsonl", "train-2.jsonl"),
    ("trainee.jsonl", "contest.jsonl", "latest.jsonl", "device.jsonl", "value.jsonl"),
]


@pytest.mark.parametrize("names", PLAIN, ids=lambda names: names[0])
def test_plain_folders_are_read_whole(tmp_path, names):
    make(tmp_path, *names)
    assert find_files(str(tmp_path)) == sorted(tmp_path / name for name in names)
    assert find_files(str(tmp_path), "valid") == find_files(str(tmp_path))
    assert not has_validation(str(tmp_path))


@pytest.mark.parametrize(
    "card", ["README.md", "readme.txt", "LICENSE.md", "Licence.txt", "deep/README.md"]
)
def test_cards_are_left_out(tmp_path, card):
    make(tmp_path, "a.txt", card)
    assert read(tmp_path) == ["a.txt"]
    assert card in str(choose_files(str(tmp_path), "train"))
    assert read(tmp_path / card) == [card]
    assert len(read(f"{tmp_path}/**/*.*")) == 2


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("train.jsonl", "test.jsonl", "a.jsonl"), "such as train.jsonl, and others, such as a.js"),
        (
            ("test.jsonl", "a.jsonl"),
            "such as test.jsonl, and others, such as a.jsonl; allowed",
        ),
        (
            ("train.txt", "test.txt", "notes.txt"),
            "such as train.txt, and others, such as not",
        ),
        (("test-0.parquet", "test-1.parquet"), "has files for test alone, such as test-0.parquet"),
        (("val.jsonl", "test.jsonl"), "has files for test and valid alone"),
        (("train/test.jsonl",), "test.jsonl is named for test and for train; allowed: one split"),
        (("train-test.jsonl",), "is named for test and for train; allowed: one split in a name"),
    ],
)
def test_folders_that_do_not_say_what_to_train_on(tmp_path, names, said):
    make(tmp_path, *names)
    with pytest.raises(ValueError, match=said) as caught:
        read(tmp_path)
    assert "\n" not in str(caught.value)
    assert read(tmp_path / names[0]) == [names[0]]


def test_a_folder_given_for_validation_may_be_a_test_split(tmp_path):
    make(tmp_path, "test-0.parquet")
    assert read(tmp_path, "valid") == ["test-0.parquet"]


@pytest.mark.parametrize("names", [("a.csv", "README.md"), ("data/a.jsonl.zst",), ("x.arrow",)])
def test_folders_of_unknown_kinds_name_what_they_have(tmp_path, names):
    make(tmp_path, *names[1:])
    (tmp_path / names[0]).parent.mkdir(exist_ok=True)
    (tmp_path / names[0]).write_text("x")
    suffix = "." + names[0].rpartition(".")[2]
    with pytest.raises(FileNotFoundError, match=f"no file of a known kind: .*; it has 1 {suffix}"):
        find_files(str(tmp_path))


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.jsonl", "a.jsonl.xz", "a.parquet", "a.bin"])
def test_pointers_of_git_lfs_are_named(tmp_path, name):
    make(tmp_path, "b.txt")
    (tmp_path / name).write_text(POINTER)
    sources = [tmp_path / name, tmp_path / "a.*", tmp_path]
    for source in sources:
        with pytest.raises(ValueError, match=f"{name} is a git-lfs pointer, not the file itself"):
            find_files(str(source))


def test_a_tokenizer_that_is_a_pointer_or_no_path(tmp_path):
    (tmp_path / "tokenizer.json").write_text(POINTER)
    with pytest.raises(ValueError, match=r"tokenizer\.json is a git-lfs pointer, not the file"):
        open_tokenizer(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match=r"^tokenizer is 'a.x00b.json'; allowed: a path without"):
        open_tokenizer("a\0b.json")


def test_validation_is_the_folder_s_own_or_held_out(tmp_path):
    texts = [f"text number {n}. " * 9 for n in range(20)]
    for name, part in (("train", texts), ("val", ["other words"]), ("test", ["never read " * 9])):
        write_json_lines(tmp_path / f"{name}.jsonl", part)
    config = DataConfig(source=str(tmp_path), sequence_length=8, batch_size=2, valid_fraction=0.1)
    both = open_pipeline(config), open_pipeline(config, "valid")
    assert "other wor" in both[1].tokenizer.decode(both[1].batch(0)["tokens"][0])
    tokens = sum(len(text) + 1 for text in texts)
    assert len(both[0]._rows) == (tokens - 1) // 8
    line = describe_data(config)
    assert line == (
        f"train: 1 .jsonl in {tmp_path}, split train; left out: 1 of split test, 1 of split valid; "
        f"valid: 1 .jsonl in {tmp_path}, split valid; left out: 1 of split test, 1 of split train"
    )
    (tmp_path / "val.jsonl").unlink()
    held_out = open_pipeline(config, "valid")
    assert " 18." in held_out.tokenizer.decode(held_out.batch(2)["tokens"].ravel())
    assert describe_data(config).endswith("left out: 1 of split test; valid: the last 0.1 of it")
    config = dataclasses.replace(config, valid_fraction=0.0)
    assert describe_data(config).endswith("left out: 1 of split test; valid: none")
    assert describe_data(DataConfig()) is None


def test_token_files_by_split(tmp_path):
    for name, start in (("train", 0), ("valid", 100)):
        write_tokens(tmp_path / f"{name}.bin", range(start, start + 99))
    config = DataConfig(source=str(tmp_path), sequence_length=9, batch_size=2)
    assert open_pipeline(config).batch(0)["tokens"].max() < 99
    assert open_pipeline(config, "valid").batch(0)["tokens"][0, 0] == 100
    assert f"train: 1 .bin in {tmp_path}, split train" in describe_data(config)


@pytest.mark.parametrize("source", ["a\0b", "\ud800", "a\0b/*.txt"])
def test_sources_that_no_file_can_have(source):
    with pytest.raises(ValueError, match=r"^DataConfig.source is .*; allowed: ") as caught:
        open_pipeline(DataConfig(source=source))
    str(caught.value).encode()


@pytest.mark.parametrize("name", ["test", "valid"])
def test_token_files_for_validation_alone(tmp_path, name):
    write_tokens(tmp_path / f"{name}.bin", range(100))
    source = str(tmp_path)
    config = DataConfig(source=source, valid_source=source, sequence_length=8, batch_size=2)
    assert open_pipeline(config, "valid").batch(0)["tokens"][0, 0] == 0
    with pytest.raises(ValueError, match=r"has files for .* alone"):
        open_pipeline(config, "train")
