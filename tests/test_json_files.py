"""The one reader of JSON from outside, and the one check of paths."""

import re
from pathlib import Path

import pytest

from multiscreen_jax.json_files import DEEPEST, parse, read_object
from multiscreen_jax.paths import checked_path, expanded_path

KEYS = {"name": str, "size": int}
GOOD = '{"name": "a", "size": 3}'


def nested(depth: int) -> str:
    return '{"x": ' + "[" * (depth - 1) + "]" * (depth - 1) + "}"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not JSON: Expecting value"),
        (b"{", "not JSON: Expecting property name"),
        (b"\n\n{]", "at line 3 column 2"),
        (b"[]", ": holds a list; allowed: an object"),
        (b"null", "holds null"),
        (b'"text"', "holds a string"),
        (b"\xff{}", "byte 0xff at position 0 is not UTF-8"),
        (GOOD.encode("utf-16"), "is not UTF-8"),
        (b"[" * 100_000, "JSON that cannot be read"),
        (b'{"a":' * 100_000, "JSON that cannot be read"),
        (nested(DEEPEST + 1), "nested too deeply"),
        ('{"name": "a", "size": 1' + "0" * 30 + "}", "more than 64 bits"),
        ('{"name": "a", "size": 1, "x": [[-1' + "0" * 30 + "]]}", "more than 64 bits"),
        ('{"name": "a", "size": 1' + "0" * 5000 + "}", "JSON that cannot be read"),
        ('{"name": "a", "name": "b", "size": 1}', "'name' is there twice"),
        ('{"name": "a"}', "lacks size; needed: name, size"),
        ("{}", "lacks name, size"),
        ('{"name": null, "size": 1}', "name is None; allowed: a string"),
        ('{"name": "a", "size": true}', "size is True; allowed: an integer"),
        ('{"name": "a", "size": 1.5}', "size is 1.5; allowed: an integer"),
        ('{"name": "a", "size": 1, "share": NaN}', "share is nan; allowed: a finite number or"),
        ('{"name": "a", "size": 1, "share": 1e999}', "share is inf"),
        ('{"name": "a", "size": 1, "share": "x"}', "a finite number or null"),
    ],
)
def test_what_is_refused_in_one_line(tmp_path, content, said):
    path = tmp_path / "facts.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=re.escape(said)) as caught:
        read_object(path, keys=KEYS, optional={"share": float | None})
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    assert len(message) < 300 + len(str(path))


def test_what_is_read(tmp_path):
    path = tmp_path / "facts.json"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.encode())
    assert read_object(path, keys=KEYS) == {"name": "a", "size": 3}
    assert read_object(GOOD, "a line") == read_object(GOOD.encode(), "a line")
    assert read_object(nested(DEEPEST))["x"] is not None
    assert read_object('{"loss": NaN, "share": null}', optional={"share": float | None})
    assert read_object('{"share": 1, "big": 18446744073709551615}', keys={"share": float})


def test_a_large_file_is_not_parsed(tmp_path):
    path = tmp_path / "facts.json"
    path.write_text(GOOD)
    with pytest.raises(ValueError, match="too large; allowed: 10 bytes"):
        read_object(path, largest=10)
    with pytest.raises(FileNotFoundError):
        read_object(tmp_path / "other.json")


def test_parse_leaves_what_is_inside_alone():
    assert parse('{"a": 1, "a": 2}', "line 1") == {"a": 2}
    with pytest.raises(ValueError, match="line 1: JSON that cannot be read"):
        parse("[" * 100_000, "line 1")


@pytest.mark.parametrize("given", ["a\0b", "", None, 3, "\ud800", b"a\0b"])
def test_paths_that_no_file_can_have(given):
    with pytest.raises(ValueError, match=r"^data.source is .*; allowed: ") as caught:
        checked_path(given, "data.source")
    str(caught.value).encode()


def test_paths_that_a_file_can_have():
    assert checked_path("a/b") == checked_path(Path("a/b")) == Path("a/b")
    assert checked_path("\udcff.txt") == Path("\udcff.txt")  # Latin-1 bytes in a name
    assert checked_path("~") == Path("~")
    assert expanded_path("~") == Path.home()
    with pytest.raises(ValueError, match=r"^path is '~nobody-here/x': "):
        expanded_path("~nobody-here/x")
