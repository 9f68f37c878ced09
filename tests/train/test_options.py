"""Command lines that cannot be read: one line and exit code 2, for every kind of command."""

import dataclasses
import os
import sys
from typing import Annotated

import pytest
import tyro

from multiscreen_jax.train import checks, options


@dataclasses.dataclass(frozen=True)
class Settings:
    folder: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
    """Where to."""
    steps: int = 3
    """How many."""
    lengths: tuple[int, ...] = (1, 2)

    def __post_init__(self):
        checks.integer("steps", self.steps, 1)


def work(nodes: int, gpus: int, name: str = "x"):
    """Work.

    Args:
        nodes: how many.
    """
    return nodes * gpus, name


def read(*words):
    return options.read(Settings, prog="p", args=list(words))


LONG = "--stepz" + "z" * 300
CASES = [
    (lambda: read("f", "--steqs", "4"), ["Unrecognized options: --steqs", "did you mean --steps?"]),
    (lambda: read("f", LONG), [f"Unrecognized options: {LONG}"]),
    (lambda: read("f", "--ste\nps", "4"), ["--ste ps"]),
    (lambda: read("f", "g", "h"), ["Unrecognized options: g, h"]),
    (lambda: read(), ["Missing from p: FOLDER\n"]),
    (lambda: read("f", "--steps", "x"), ["--steps: invalid literal for int() with base 10: 'x'\n"]),
    (lambda: read("f", "--steps"), ["--steps"]),
    (lambda: read("f", "--lengths", "1", "x"), ["--lengths"]),
    (lambda: options.read(work, prog="p", args=[]), ["Missing from p: --nodes INT, --gpus INT\n"]),
    (lambda: options.subcommands({"a": work, "b": work}, prog="p", args=["c"]), ["a, b"]),
    (lambda: options.subcommands({"a": work, "b": work}, prog="p", args=[]), ["a, b"]),
    (
        lambda: options.subcommands({"a": work, "b": work}, prog="p", args=["a", "--node", "1"]),
        ["Missing from p a: --nodes INT, --gpus INT; Unrecognized options: --node, 1\n"],
    ),
]


@pytest.mark.parametrize(("call", "parts"), CASES)
def test_what_cannot_be_read_is_one_line(call, parts, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")  # narrower than every message
    with pytest.raises(SystemExit) as ended:
        call()
    assert ended.value.code == 2
    text = capsys.readouterr().err
    assert text.startswith("error: ")
    assert text.count("\n") == 1
    for part in parts:
        assert part in text
    assert os.environ["COLUMNS"] == "40"


def test_a_section_says_itself_what_it_refuses():
    with pytest.raises(ValueError, match=r"^steps is 0; allowed: an integer >= 1$"):
        read("f", "--steps", "0")


def test_what_is_read(capsys):
    assert read("f", "--steps", "4") == Settings("f", 4)
    with pytest.raises(SystemExit, match="0"):
        read("--help")
    assert "How many." in capsys.readouterr().out


def test_a_function_is_called_with_its_options(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["p", "--nodes", "2", "--gpus", "4"])
    assert options.call(work) == (8, "x")

    def refuse(nodes: int):
        print("said before", file=sys.stderr)
        checks.integer("nodes", nodes, 3)

    monkeypatch.setattr(sys, "argv", ["p", "--nodes", "2"])
    with pytest.raises(SystemExit, match="2"):
        options.call(refuse)
    wanted = "said before\nerror: nodes is 2; allowed: an integer >= 3\n"
    assert capsys.readouterr().err == wanted


# As versions 0.9 draw it, and what is no box at all.
@pytest.mark.parametrize(
    ("box", "line"),
    [
        (
            "╭─ Unrecognized options ──╮\n│ Unrecognized options: --a --b │\n│ ───────── │\n"
            "│ Arguments similar to --a: │\n│     --aa INT  │\n│         how many │\n│ ───── │\n"
            "│ Arguments similar to --b: │\n│     --bb INT │\n│ ───── │\n│ For full help, run p │\n"
            "╰─────╯\n",
            "error: Unrecognized options: --a --b; did you mean --aa or --bb?\n",
        ),
        (
            " Value error \n ----------- \n  Error parsing --n: no \n  --------- \n"
            "  Argument helptext: \n      --n INT \n",
            "error: Error parsing --n: no\n",
        ),
        ("what\nelse\n", "error: else\n"),
        ("what\n", "error: what\n"),
    ],
)
def test_boxes(box, line):
    assert options.one_line(box) == line
