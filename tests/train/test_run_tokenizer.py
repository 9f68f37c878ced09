"""A run's folder holds the tokenizer it was trained with, and nothing reads it with another."""

import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest

from experiments.configs import mqar_small
from experiments.evaluate import run as evaluate
from experiments.evaluate_config import EvaluateConfig, TextConfig
from multiscreen_jax.data import open_tokenizer
from multiscreen_jax.train import config_json, override, run_tokenizer, together, train
from multiscreen_jax.train.errors import NotWritten, one_line_errors
from multiscreen_jax.train.trained_run import open_run
from tests.train.old_runs import change_run_facts
from tests.train.tokenized import (
    TEXT,
    WORDS,
    one_line,
    prepare,
    settings,
    token_file,
    write_tokenizer,
)


def mqar(folder):
    run = {"output_dir": str(folder / "run"), "tensorboard": False}
    model = {"model_dim": 8, "num_layers": 1}
    return override(mqar_small.config(), train=run, model=model)


@pytest.mark.parametrize(
    ("make", "name", "settled"),
    [
        (lambda folder: settings(folder / "run", folder / "corpus.txt", "bytes"), "bytes", {}),
        (
            lambda folder: settings(folder / "run", folder / "corpus.txt"),
            "characters",
            {"alphabet": " .acdeghlmnorst"},
        ),
        (
            lambda folder: settings(folder / "run", token_file(folder), "bytes"),
            "tokenizer.json",
            {"eos_token": "<eos>"},
        ),
        (lambda folder: settings(folder / "run", "abcdigits", data={"sequence_length": 64}),
         "characters", {"alphabet": "0123456789=\nABCDEFGHIJKLMNOPQRSTUVWXYZ"}),
        (mqar, "numbers", {}),
    ],
    ids=["bytes", "characters", "token file", "abcdigits", "mqar"],
)  # fmt: skip
def test_the_copy_is_there_before_the_first_step(make, name, settled, tmp_path, monkeypatch):
    (tmp_path / "corpus.txt").write_text(TEXT * 40)
    config = make(tmp_path)
    prepare(config, monkeypatch)
    copy = run_tokenizer.kept(tmp_path / "run")
    assert Path(copy.name).name == name
    assert copy.settings == settled
    facts = json.loads((tmp_path / "run" / "tokenizer" / "facts.json").read_text())
    assert facts["fingerprint"] == copy.fingerprint
    if name == "tokenizer.json":
        assert Path(copy.name).read_bytes() == (tmp_path / "words.json").read_bytes()
    prepare(config, monkeypatch)  # there are no checkpoints yet: a new run writes it anew
    assert run_tokenizer.kept(tmp_path / "run").fingerprint == copy.fingerprint


@pytest.mark.slow
def test_a_new_character_in_the_corpus_changes_nothing_of_the_run(place, monkeypatch):
    before = open_run("run").tokenizer
    with Path("corpus.txt").open("a") as corpus:
        corpus.write("A1 new line\n")
    tokenizer = open_run("run").tokenizer
    assert tokenizer.fingerprint == before.fingerprint
    np.testing.assert_array_equal(tokenizer.encode("the cat"), before.encode("the cat"))
    with pytest.raises(
        ValueError, match=r"'A' at position .* is not in the alphabet of 15"
    ) as error:
        evaluate(EvaluateConfig(run="run"))
    assert "corpus.txt" in one_line(error)
    with pytest.raises(
        ValueError, match="made with other data, of tokenizer 'characters'"
    ) as error:
        train(settings("run", "corpus.txt"))
    assert one_line(error).endswith("which has '\\n1Aiw' besides")


def test_a_replaced_tokenizer_file_changes_nothing_of_the_run(place):
    original = Path("tokenizer.json").read_bytes()
    write_tokenizer(Path("tokenizer.json"), *reversed(WORDS))
    opened = open_run("words")
    assert opened.tokenizer.name == str(place / "words" / "tokenizer" / "tokenizer.json")
    assert Path(opened.tokenizer.name).read_bytes() == original
    assert opened.tokenizer.decode([2, 3]) == "the cat"
    assert evaluate(EvaluateConfig(run="words", max_batches=1))["loss"] < 6
    with pytest.raises(ValueError, match=r"of tokenizer 'tokenizer.json' .* read with") as error:
        train(settings("words", "corpus.txt", "tokenizer.json"))
    one_line(error)


def test_another_folder_and_another_machine(place, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    opened = open_run(place / "words")
    assert opened.tokenizer.decode([2, 3]) == "the cat"
    assert opened.readable().source == str(place / "corpus.txt")
    record = evaluate(EvaluateConfig(run=str(place / "words"), max_batches=1))
    assert record["source"] == str(place / "corpus.txt")
    for name in ("run", "words"):
        shutil.copytree(place / name, tmp_path / "elsewhere" / name)
    shutil.rmtree(place)
    assert open_run("words").tokenizer.decode([2, 3]) == "the cat"
    assert open_run("run").tokenizer.encode("the").size == 3
    with pytest.raises(FileNotFoundError, match=f"source '{place}/corpus.txt' does not") as error:
        evaluate(EvaluateConfig(run="run"))
    one_line(error)
    Path("corpus.txt").write_text(TEXT * 40)  # beside the run it is found
    assert evaluate(EvaluateConfig(run="run", max_batches=1))["source"] == "corpus.txt"


@pytest.mark.parametrize("task", ["perplexity", "relevance"])
def test_tokens_of_another_tokenizer_are_not_evaluated(task, place):
    write_tokenizer(Path("words.json"), *reversed(WORDS))
    facts = {"dtype": "uint16", "vocab_size": 9, "tokenizer": "words.json"}
    Path("tokens.json").write_text(json.dumps(facts))
    np.full(400, 2, np.uint16).tofile("tokens.bin")
    config = EvaluateConfig(run="words", task=task, data=TextConfig("tokens.bin"))
    with pytest.raises(ValueError, match=r"^words was trained with tokenizer '.*tokens.bin holds"):
        evaluate(config)


def flip(folder):
    content = bytearray((folder / "tokenizer.json").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "tokenizer.json").write_bytes(content)


def cut(folder):
    (folder / "facts.json").write_text((folder / "facts.json").read_text()[:30])


def brackets(folder):
    (folder / "facts.json").write_text("[" * 100_000)


def other_name(folder):
    facts = json.loads((folder / "facts.json").read_text()) | {"name": "gpt3", "sha256": None}
    (folder / "facts.json").write_text(
        json.dumps({k: v for k, v in facts.items() if v is not None})
    )


def other_file(folder):
    """A copy of another tokenizer, whole in itself."""
    other = write_tokenizer(folder.parent / "other.json", *reversed(WORDS))
    run_tokenizer.keep(folder.parent, open_tokenizer(str(other)))


def other_kind(folder):
    run_tokenizer.keep(folder.parent, open_tokenizer("bytes"))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (flip, "does not match its SHA-256"),
        (cut, "facts.json: not JSON"),
        (brackets, "facts.json: JSON that cannot be read"),
        (lambda folder: (folder / "facts.json").unlink(), "facts.json"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json"),
        (other_name, r"its name is 'gpt3'; allowed: .*\(did you mean gpt2\?\)"),
        (other_file, r"trained with tokenizer 'tokenizer.json' .*, .*words/tokenizer holds '/"),
        (other_kind, r"trained with tokenizer 'tokenizer.json' .* holds 'bytes'"),
    ],
)
def test_a_damaged_or_replaced_copy_is_refused(damage, reason, place):
    damage(place / "words" / "tokenizer")
    with pytest.raises(ValueError, match=reason) as error:
        open_run("words")
    assert str(place / "words") in one_line(error)
    with pytest.raises(ValueError, match=r"words/tokenizer (cannot be used|holds)") as error:
        train(settings("words", "corpus.txt", "tokenizer.json"))
    one_line(error)


def test_a_lost_copy_is_made_up_for_by_what_checkpoints_know(place):
    before = open_run("run").tokenizer.fingerprint
    Path("corpus.txt").write_text("AB" * 400)
    for name in ("run", "words"):
        shutil.rmtree(place / name / "tokenizer")
    with pytest.warns(
        UserWarning, match="run has no copy of its tokenizer; 'characters'"
    ) as warned:
        assert open_run("run").tokenizer.fingerprint == before
    assert len(warned) == 1
    with pytest.warns(UserWarning, match=r"no copy of its tokenizer; 'tokenizer\.json'"):
        assert open_run("words").tokenizer.decode([2]) == "the"
    write_tokenizer(Path("tokenizer.json"), *reversed(WORDS))
    with pytest.raises(ValueError, match=r"trained with tokenizer .*in place of its copy") as error:
        open_run("words")
    one_line(error)


def test_commands_warn_in_one_line():
    with one_line_errors():
        ours = warnings.formatwarning("of a run", UserWarning, run_tokenizer.__file__, 7)
        other = warnings.formatwarning("of numpy", UserWarning, np.__file__, 7)
    assert ours == "warning: of a run\n"
    assert f"{np.__file__}:7: UserWarning: of numpy" in other


def test_parameters_are_not_inherited_by_another_tokenizer(place, monkeypatch):
    with pytest.raises(
        ValueError, match=r"was trained with tokenizer 'characters' .*'bytes'"
    ) as error:
        train(settings("next", "corpus.txt", "bytes", train={"init_from": "run"}))
    assert str(place / "run" / "checkpoints" / "2") in one_line(error)
    prepare(settings("next", "corpus.txt", train={"init_from": "run"}), monkeypatch)


def test_a_run_goes_on_where_files_have_moved(place, tmp_path, monkeypatch, capsys):
    Path("held.txt").write_text(TEXT * 9)
    more = {"data": {"valid_source": "held.txt"}, "train": {"init_from": "words"}}
    train(settings("first", "corpus.txt", "tokenizer.json", **more))
    moved = tmp_path / "moved"
    place.rename(moved)
    (moved / "first").rename(moved / "second")
    (moved / "tokenizer.json").unlink()
    (moved / "link.txt").symlink_to(moved / "corpus.txt")
    (moved / "words").rename(moved / "base")

    def again(**changes):
        fields = {"output_dir": str(moved / "second"), "steps": 3, "init_from": str(moved / "base")}
        data = {"valid_source": str(moved / "held.txt")}
        return settings(
            moved / "second",
            moved / "link.txt",
            moved / "second" / "tokenizer" / "tokenizer.json",
            train=fields | changes.pop("train", {}),
            data=data | changes,
        )

    monkeypatch.chdir(tmp_path)
    prepare(again(), monkeypatch)
    assert f"continues {moved / 'second'} after step 2" in capsys.readouterr().out
    other = {"init_from": str(moved / "run")}
    with pytest.raises(ValueError, match=r"train\.init-from was 'words', now") as error:
        train(again(train=other))
    one_line(error)
    (moved / "more.txt").write_text(TEXT * 10)
    with pytest.raises(ValueError, match=r"what data\.valid-source reads changed") as error:
        train(again(valid_source=str(moved / "more.txt")))
    one_line(error)
    with pytest.raises(ValueError, match=r"what data\.source reads changed \(it was") as error:
        train(again(source=str(moved / "more.txt")))
    one_line(error)


def test_a_copy_that_cannot_be_written_is_an_error_of_its_own(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(NotWritten, match=r"could not write .*file/tokenizer: ") as error:
        run_tokenizer.keep(tmp_path / "file", open_tokenizer("bytes"))
    one_line(error)


def a_program(place):
    (place / "tokenizer").mkdir()
    (place / "tokenizer" / "my_script.py").write_text("mine")


def a_tokenizer_file(place):
    (place / "tokenizer").mkdir()
    write_tokenizer(place / "tokenizer" / "tokenizer.json", *WORDS)


def more_than_a_copy(place):
    a_program(place)
    (place / "tokenizer" / "facts.json").write_text("{}")


def a_link(place):
    (place / "mine").mkdir()
    (place / "mine" / "facts.json").write_text("{}")
    (place / "tokenizer").symlink_to(place / "mine")


@pytest.mark.parametrize(
    "make",
    [a_program, a_tokenizer_file, more_than_a_copy, a_link, lambda p: (p / "tokenizer").touch()],
)
def test_what_is_the_user_s_own_is_never_removed(make, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("corpus.txt").write_text(TEXT * 40)
    make(tmp_path)
    before = {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}
    name = "tokenizer/tokenizer.json"
    config = settings(".", "corpus.txt", name if Path(name).exists() else "characters")
    with pytest.raises(ValueError, match=r"/tokenizer exists and is not a run's copy") as error:
        train(config)
    one_line(error)
    after = {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}
    assert after == before


def test_a_process_that_refuses_a_checkpoint_tells_the_others(place, monkeypatch):
    told = []
    monkeypatch.setattr(together, "_from_all", lambda value: told.append(value) or [value])
    with pytest.raises(ValueError, match="was made with other settings") as refused:
        train(settings("run", "corpus.txt", train={"seed": 3}))
    assert told[-1] == (2, str(refused.value))
    with pytest.raises(ValueError, match="was trained with tokenizer") as refused:
        train(settings("next", "corpus.txt", "bytes", train={"init_from": "run"}))
    assert told[-1] == (2, str(refused.value))


def test_run_facts_that_cannot_be_used_end_a_resumed_run_in_one_line(place):
    folder = place / "run" / "checkpoints" / "2"
    change_run_facts(folder, lambda run: run["tokenizer"].update(settings={"alphabet": 5}))
    with pytest.raises(ValueError, match="its tokenizer: settings has 5; allowed: str") as error:
        train(settings("run", "corpus.txt", train={"steps": 3}))
    assert str(folder) in one_line(error)


@pytest.mark.parametrize("content", ['{"model": "mine"}', "[1]"])
def test_the_user_s_own_settings_file_is_not_replaced(content, tmp_path):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match="exists and is not a run's settings") as error:
        config_json.save(settings("run", "corpus.txt"), tmp_path / "config.json")
    assert str(tmp_path / "config.json") in one_line(error)
    assert [path.read_text() for path in tmp_path.iterdir()] == [content]
    (tmp_path / "config.json").write_text("")  # of a machine that died
    for _ in range(2):
        config_json.save(settings("run", "corpus.txt"), tmp_path / "config.json")
