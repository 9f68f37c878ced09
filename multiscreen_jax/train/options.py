"""Command lines, read by tyro; what it refuses is one line and exit code 2, not a box.

    settings = options.read(Settings, prog="python -m experiments.export")
    options.call(main)                         # a function whose parameters are the options

Ends with SystemExit: 0 after --help, 2 for options that do not exist or cannot be read. What a
section's own checks refuse is the ValueError they raised.
"""

import contextlib
import functools
import io
import itertools
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import tyro

from multiscreen_jax.train.errors import is_ours, one_line_errors

_MOST_HINTS = 3
_WIDE = 100_000  # columns: no row of a box is broken


def read(target: Any, **settings: Any) -> Any:
    """`tyro.cli(target, **settings)`."""
    return _in_one_line(tyro.cli, target, **settings)


def subcommands(targets: Mapping[str, Any], **settings: Any) -> Any:
    """`tyro.extras.subcommand_cli_from_dict(targets, **settings)`."""
    return _in_one_line(tyro.extras.subcommand_cli_from_dict, dict(targets), **settings)


def call(main: Callable[..., Any], **settings: Any) -> Any:
    """Calls `main` with what the command line says (tyro is done by then); one-line errors."""

    @functools.wraps(main)
    def bound(*values: Any, **named: Any) -> Any:
        return functools.partial(main, *values, **named)

    with one_line_errors():
        return read(bound, **settings)()


def _in_one_line(parse: Callable[..., Any], target: Any, **settings: Any) -> Any:
    words = settings.get("args")
    helps = {"-h", "--help"} & set(sys.argv[1:] if words is None else words)
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told), contextlib.nullcontext() if helps else _wide():
            result = parse(target, **settings)
    except SystemExit as stop:
        if refused := _refused(stop):
            raise ValueError(str(refused)) from None
        text = told.getvalue()
        # The training options that a launcher reads are a command line within its own.
        in_a_box = stop.code == 2 and not text.startswith("error: ")
        print(one_line(text) if in_a_box else text, end="", file=sys.stderr)
        raise
    print(told.getvalue(), end="", file=sys.stderr)
    return result


@contextlib.contextmanager
def _wide() -> Iterator[None]:
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(_WIDE)
    try:
        yield
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before


def one_line(box: str) -> str:
    """Reduces tyro's box to one line: its first paragraph, and the options it suggests."""
    # Below the title, paragraphs lie between rules. Drawn in ASCII the box has no sides.
    rows = [row.strip("│╰╯").rstrip() for row in box.splitlines()[1:]]
    groups = itertools.groupby(rows, lambda row: bool(row.strip(" ─-")))
    paragraphs = [list(group) for is_text, group in groups if is_text]
    if not paragraphs:
        return f"error: {' '.join(box.split())}\n"
    line, near = _joined(paragraphs[0]), []
    for header, *rest in paragraphs[1:]:
        if "Perhaps you meant" in header or " similar to " in header:
            near += [row.split()[0] for row in rest if row.lstrip().startswith("--")]
        elif header.strip().startswith(("Unrecognized", "Available")):
            line += f"; {_joined([header, *rest])}"
    nearest = list(dict.fromkeys(near))[:_MOST_HINTS]
    hint = f"; did you mean {' or '.join(nearest)}?" if near else ""
    return f"error: {line}{hint}\n"


def _joined(paragraph: list[str]) -> str:
    """A paragraph's text, and below a row that ends with a colon the names of its list."""
    first, *rest = paragraph
    indent = len(first) - len(first.lstrip())
    depths = [len(row) - len(row.lstrip()) - indent for row in rest]
    if first.endswith(":") and rest and (outer := min(depths)) > 0:
        # What lies deeper explains an item.
        items = [row.strip() for row, depth in zip(rest, depths, strict=True) if depth == outer]
        return f"{first.strip()} {', '.join(items)}"
    return " ".join(row.strip() for row in paragraph)


def _refused(stop: BaseException) -> BaseException | None:
    """The error of a section's own check, which tyro put in a box."""
    error = stop.__context__
    while error is not None and not is_ours(error):
        error = error.__context__
    return error
