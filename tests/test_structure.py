"""How the library is built: imports go one way, and one list names the architectures."""

import ast
import re
from collections import defaultdict
from pathlib import Path

from multiscreen_jax.models.registry import ARCHITECTURES

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "multiscreen_jax"


def imports(file):
    """Modules of the library that a file imports, in functions and for types too."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module == "multiscreen_jax":
            yield from (f"multiscreen_jax.{name.name}" for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def module_of(file):
    return ".".join(file.relative_to(ROOT).with_suffix("").parts)


def edges():
    """{folder or module at the top: those it imports}"""
    found = defaultdict(set)
    for file in PACKAGE.rglob("*.py"):
        parts = module_of(file).split(".")
        for name in imports(file):
            if name.startswith("multiscreen_jax.") and (other := name.split(".")[1]) != parts[1]:
                found[parts[1]].add(other)
    return found


def test_no_circle_between_folders():
    found = edges()

    def reached(start):
        seen, left = set(), [start]
        while left:
            new = found[left.pop()] - seen
            seen |= new
            left += new
        return seen

    assert not [name for name in list(found) if name in reached(name)]


def test_models_stand_on_mixers_and_mixers_on_layers():
    allowed = {"layers": set(), "mixers": {"layers"}, "models": {"layers", "mixers"}}
    for folder, below in allowed.items():
        assert edges()[folder] & {"models", "mixers", "layers", "train", "convert"} == below


def test_kernels_know_nothing_of_the_library():
    for file in (ROOT / "pallas_kernels").rglob("*.py"):
        assert not [name for name in imports(file) if name.split(".")[0] == "multiscreen_jax"]


def test_one_list_names_the_architectures():
    """`models/__init__.py` imports their files; nothing else in the library names two of them."""
    homes = {each.config.__name__: each.config.__module__ for each in ARCHITECTURES}
    init = (PACKAGE / "models" / "__init__.py").read_text()
    stars = re.findall(r"from multiscreen_jax\.models\.(\w+) import \*", init)
    assert sorted(stars) == sorted(home.split(".")[-1] for home in homes.values())
    for file in PACKAGE.rglob("*.py"):
        words = set(re.findall(r"\w+", code_of(file)))
        named = {name for name in words & homes.keys() if homes[name] != module_of(file)}
        assert len(named) <= 1, f"{file.relative_to(ROOT)} names {sorted(named)}"


def code_of(file):
    """A file without its docstrings and comments."""
    return ast.unparse(_without_docstrings(ast.parse(file.read_text())))


def _without_docstrings(tree):
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            body[0] = ast.Pass()  # a docstring, or nothing that names a class
    return tree
