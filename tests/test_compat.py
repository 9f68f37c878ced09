"""The tests marked compat are there."""

from pathlib import Path

from tests.conftest import COMPAT


def test_every_name_is_of_a_test():
    """One that is moved or renamed would silently be left out."""
    for line in COMPAT.read_text().split("\n"):
        path, _, name = line.partition("::")
        if path and not path.startswith("#"):
            found = Path(__file__).parent / path
            assert found.exists(), line
            assert not name or f"def {name.partition('[')[0]}(" in found.read_text(), line
