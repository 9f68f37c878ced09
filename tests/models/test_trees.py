"""Trees of all presets as they were released: checkpoints are read by path, shape and axes."""

import json
from pathlib import Path

import jax
import pytest

from multiscreen_jax.layers.parameters import facts_of
from multiscreen_jax.models.registry import create, preset_names
from multiscreen_jax.sharding import path_name
from multiscreen_jax.train.state import abstract_params
from tests.marks import slow_unless

# {preset: {path: [shape, axes, whether weight decay applies]}}
TREES = json.loads(Path(__file__).with_name("trees.json").read_text())


TINY = sorted(name for name in TREES if name.endswith("tiny"))


@pytest.mark.parametrize("name", slow_unless(TINY, sorted(TREES)))
def test_a_released_tree_stays(name):
    model, config = create(name)
    leaves = jax.tree_util.tree_leaves_with_path(abstract_params(model))
    facts = jax.tree.leaves(facts_of(model))
    tree = {
        path_name(path): [list(leaf.shape), list(its.axes), its.decay]
        for (path, leaf), its in zip(leaves, facts, strict=True)
    }
    assert tree == TREES[name]
    assert {its.rule for its in facts} == {"adamw"}
    assert sum(leaf.size for _, leaf in leaves) == config.parameter_count()


def test_all_presets_are_there():
    assert set(TREES) <= set(preset_names())
