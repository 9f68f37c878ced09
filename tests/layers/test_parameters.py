"""Facts of parameters: collected by tracing, strict, and part of no variables."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multiscreen_jax.layers.parameters import Facts, facts_of, weight
from multiscreen_jax.layers.stack import LayerStack

AXES = ("embed", "heads")


class Block(nn.Module):
    how: str = "weight"

    @nn.compact
    def __call__(self, x, layer, shared):
        ones = nn.initializers.ones
        x = x * weight(self, "scale", ones, (3,), (None,), "float32", decay=False, rule="sign")[0]
        if self.how == "param":
            return x * self.param("fading", ones, (3,)), None
        return x @ weight(self, "matrix", nn.initializers.normal(), (3, 3), AXES, "float32"), None


class Model(nn.Module):
    how: str = "weight"
    layers: int = 2
    remat: str = "none"
    unroll: bool = False

    @nn.compact
    def __call__(self, tokens):
        x = jnp.ones((*tokens.shape, 3))
        fields = {"how": self.how}
        stack = LayerStack(Block, fields, self.layers, self.remat, self.unroll, name="stack")
        return stack(x)[0]


@pytest.mark.parametrize("fields", [{}, {"remat": "full"}, {"unroll": True}, {"layers": 1}])
def test_facts_are_those_of_the_scanned_tree(fields):
    model = Model(**fields)
    assert facts_of(model) == {
        "stack": {
            "scale": Facts(("layers", None), decay=False, rule="sign"),
            "matrix": Facts(("layers", "embed", "heads")),
        }
    }
    variables = model.init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))
    assert variables.keys() == {"params"}
    plain = variables["params"]["stack"]["matrix"]
    assert isinstance(plain, jax.Array)
    assert plain.shape == (model.layers, 3, 3)


def test_facts_are_found_after_the_model_was_traced():
    model = Model(layers=3)
    jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 2), jnp.int32))
    assert facts_of(model)["stack"]["matrix"].axes == ("layers", "embed", "heads")


def test_a_parameter_without_facts_is_named():
    with pytest.raises(ValueError, match=r"stack/fading \(2, 3\) has no facts; make it with self"):
        facts_of(Model("param"))


class One(nn.Module):
    axes: tuple = AXES
    rule: str = "adamw"

    @nn.compact
    def __call__(self, tokens):
        return weight(self, "w", nn.initializers.ones, (3, 3), self.axes, "float32", rule=self.rule)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"axes": ("embed",)},
            r"w has shape \(3, 3\) and axes \('embed',\); allowed: one",
        ),
        ({"axes": ("embed", "width")}, "parameter w has an axis 'width'; allowed: None, batch, "),
        ({"rule": "lion"}, "parameter w has the rule 'lion'; allowed: adamw, sign, frozen"),
    ],
)
def test_facts_that_cannot_be_are_refused(fields, message):
    with pytest.raises(ValueError, match=message) as error:
        One(**fields).init(jax.random.key(0), np.zeros((1, 2), np.int32))
    assert "\n" not in str(error.value)
