"""A run's folder holds the tokenizer it was trained with, and nothing reads it with another."""

import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import tokenizers

from experiments.configs import mqar_small, tiny
from experiments.evaluate import run as evaluate
from experiments.evaluate_config import EvaluateConfig, TextConfig
from multiscreen_jax.data import open_pipeline, open_tokenizer
from multiscreen_jax.data.loading import open_split
from multiscreen_jax.data.pipeline import fingerprint_of
from multiscreen_jax.train import override, run_tokenizer, setup, together, train
from multiscreen_jax.train.errors import NotWritten, one_line_errors
from multiscreen_jax.train.trained_run import open_run
from tests.train.old_runs import change_run_facts, make_old

TEXT = "the cat sat on the mat and the dog ran to the log. "


class BeforeTheFirstStep(Exception):
    pass


def prepare(config, monkeypatch):
    """All that training does before its first step."""

    def stop(*arguments):
        raise BeforeTheFirstStep

    with monkeypatch.context() as patch:
        patch.setattr(setup, "_compile", stop)
        with pytest.raises(BeforeTheFirstStep):
            train(config)


def settings(output, source, tokenizer="characters", **changes):
    data = {"source": str(source), "tokenizer": str(tokenizer), "sequence_length": 16}
    run = {"output_dir": str(output), "steps": 2, "tensorboard": False}
    sections = {"data": data, "train": run, "model": {"implementation": "reference"}}
    for section, fields in changes.items():
        sections[section] |= fields
    return override(tiny.config(), **sections)


def write_tokenizer(path: Path, *words: str) -> Path:
    names = ["<eos>", "<other>", *words]
    vocabulary = {name: token for token, name in enumerate(names)}
    library = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<other>"))
    library.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    library.save(str(path))
    return path


WORDS = ("the", "cat", "sat", "on", "mat", "and", "dog")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder in which two runs were started: `run` on characters, `words` on a tokenizer.json."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "corpus.txt").write_text(TEXT * 40)
    write_tokenizer(folder / "tokenizer.json", *WORDS)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        train(settings("run", "corpus.txt"))
        train(settings("words", "corpus.txt", "tokenizer.json"))
    return folder


@pytest.fixture
def place(trained, tmp_path, monkeypatch):
    """A copy of that folder in which a test may change what it likes, and is."""
    shutil.copytree(trained, tmp_path / "place")
    monkeypatch.chdir(tmp_path / "place")
    for name in ("run", "words"):  # as if they had been started here
        change_run_facts(
            tmp_path / "place" / name / "checkpoints" / "2",
            lambda run: run.update(working_directory=str(tmp_path / "place")),
        )
    return tmp_path / "place"


def one_line(error) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def token_file(folder: Path) -> Path:
    write_tokenizer(folder / "words.json", *WORDS)
    facts = {"dtype": "uint16", "vocab_size": 9, "tokenizer": "words.json", "eos_token": "<eos>"}
    (folder / "tokens.json").write_text(json.dumps(facts))
    np.full(400, 2, np.uint16).tofile(folder / "tokens.bin")
    return folder / "tokens.bin"


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


def opened_with_one_warning(name):
    with pytest.warns(UserWarning, match="has no copy of its tokenizer; '") as warned:
        opened = open_run(name)
    assert len(warned) == 1
    assert "\n" not in str(warned[0].message)
    return opened.tokenizer, str(warned[0].message)


def test_commands_warn_in_one_line():
    with one_line_errors():
        ours = warnings.formatwarning("of a run", UserWarning, run_tokenizer.__file__, 7)
        other = warnings.formatwarning("of numpy", UserWarning, np.__file__, 7)
    assert ours == "warning: of a run\n"
    assert f"{np.__file__}:7: UserWarning: of numpy" in other


def test_runs_of_earlier_versions_open(place, monkeypatch):
    for name, wanted in (("run", "characters"), ("words", "tokenizer.json")):
        fingerprint = open_run(name).tokenizer.fingerprint
        tokenizer, text = opened_with_one_warning(make_old(place / name))
        assert (tokenizer.name, tokenizer.fingerprint) == (wanted, fingerprint)
        assert f"{name} has no copy of its tokenizer; '{wanted}'" in text
    prepare(settings("run", "corpus.txt", train={"steps": 3}), monkeypatch)
    assert run_tokenizer.kept(place / "run") is not None  # written when it goes on
    assert open_run("run").tokenizer.name == "characters"
    Path("corpus.txt").unlink()
    tokenizer, text = opened_with_one_warning("words")
    assert tokenizer.decode([2]) == "the"
    assert "is used unchecked, since its data is gone" in text


@pytest.mark.parametrize("change", ["corpus", "tokenizer", "no corpus", "no tokenizer"])
def test_runs_of_earlier_versions_are_not_read_with_another_tokenizer(change, place):
    name = "words" if "tokenizer" in change else "run"
    make_old(place / name)
    if change == "corpus":
        Path("corpus.txt").write_text(TEXT * 40 + "A1 new line\n")
    elif change == "tokenizer":
        write_tokenizer(Path("tokenizer.json"), *reversed(WORDS))
    else:
        Path("corpus.txt" if change == "no corpus" else "tokenizer.json").unlink()
    text = "does not exist" if change.startswith("no") else "no copy of its tokenizer, and cannot"
    with pytest.raises((ValueError, FileNotFoundError), match=text) as error:
        open_run(name)
    one_line(error)


def test_a_copy_that_contradicts_the_settings_is_refused(place):
    make_old(place / "run")
    run_tokenizer.keep(place / "run", open_tokenizer("gpt2"))
    folder = place / "run" / "checkpoints" / "2"
    change_run_facts(folder, lambda run: run["config"]["data"].update(alphabet="abc"))
    with pytest.raises(ValueError, match=r"tokenizer 'characters' .* holds 'gpt2'") as error:
        open_run("run")
    one_line(error)


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


def reads(output, fingerprint, **data):
    """Makes a run's folder an old one that was trained on other data."""

    def change(run):
        run.update(data_fingerprint=fingerprint)
        run["config"]["data"].update(data)

    make_old(output)
    change_run_facts(output / "checkpoints" / "2", change)


def test_tokens_that_cannot_be_found_are_not_taken_for_bytes(place, tmp_path, monkeypatch):
    (place / "folder").mkdir()
    for suffix in ("bin", "json"):
        token_file(place).with_suffix(f".{suffix}").rename(place / "folder" / f"corpus.{suffix}")
    facts = json.loads((place / "folder" / "corpus.json").read_text())
    facts["tokenizer"] = str(place / "words.json")
    (place / "folder" / "corpus.json").write_text(json.dumps(facts))
    config = settings("x", "folder", "bytes")
    reads(place / "run", open_pipeline(config.data).fingerprint, source="folder", tokenizer="bytes")
    tokenizer, _ = opened_with_one_warning("run")
    assert tokenizer.decode([2, 3]) == "the cat"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match="no copy of its tokenizer, and it cannot") as error:
        open_run(place / "run")
    one_line(error)
    run_tokenizer.keep(place / "run", tokenizer)
    assert open_run(place / "run").tokenizer.decode([2, 3]) == "the cat"


def a_card(folder):
    (folder / "README.md").write_text("# A card: {}")
    return ["README.md", "data/a.txt", "data/b.txt"]


def splits(folder):
    for name in ("train", "test"):
        (folder / f"{name}.jsonl").write_text(json.dumps({"text": f"{name} 123 {TEXT}"}))
    (folder / "data").rename(folder / ".data")
    return ["test.jsonl", "train.jsonl"]


@pytest.mark.parametrize("change", [a_card, splits])
@pytest.mark.parametrize("tokenizer", ["characters", "tokenizer.json"])
def test_folders_that_are_read_otherwise_now_still_tell_the_tokenizer(change, tokenizer, place):
    """Earlier versions read every file of a folder, and a batch may be larger than the corpus."""
    folder = place / "folder"
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "a.txt").write_text(TEXT * 20)
    (folder / "data" / "b.txt").write_text(TEXT * 9)
    texts = []
    for name in change(folder):
        content = (folder / name).read_text()
        texts.append(json.loads(content)["text"] if name.endswith("l") else content)
    (place / "all.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    data = settings("x", "all.jsonl", tokenizer, data={"batch_size": 100_000}).data
    store, wanted = open_split(data, "train")
    fingerprint = fingerprint_of(data, "train", store.checksum, wanted)
    fields = {"source": "folder", "tokenizer": tokenizer, "batch_size": 100_000}
    reads(place / "run", fingerprint, **fields)
    assert opened_with_one_warning("run")[0].fingerprint == wanted.fingerprint
    (folder / "more.txt").write_text("other")
    with pytest.raises(
        ValueError, match=r"no copy of its tokenizer, and cannot|in names|names put"
    ):
        open_run("run")


def test_all_processes_agree_on_who_keeps_an_old_run_s_tokenizer(place, monkeypatch):
    told = []
    monkeypatch.setattr(together, "_from_all", lambda value: told.append(value) or [value])
    config = settings("run", "corpus.txt", train={"steps": 3})
    prepare(config, monkeypatch)
    with_copy = len(told)
    make_old(place / "run")
    prepare(config, monkeypatch)
    assert len(told) == 2 * with_copy


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
