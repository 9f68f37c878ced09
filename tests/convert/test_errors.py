"""Bad input is refused in one line that names what was given and what is expected."""

import dataclasses

import jax
import numpy as np
import pytest

from multiscreen_jax import convert
from tests.convert.trees import MULTISCREEN, TRANSFORMER, random_tree

LLAMA = "transformer/hf-llama"


def named(source="multiscreen/paper", config=MULTISCREEN):
    return convert.to_torch(source, random_tree(config), config)


def refused(error, *parts, source="multiscreen/paper", state=None, config=MULTISCREEN):
    with pytest.raises(error) as caught:
        convert.from_torch(source, state, config)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message
    return message


def test_unknown_source_gives_near_matches():
    refused(
        ValueError,
        "multiscreen/dieodd",
        "did you mean multiscreen/dieod",
        source="multiscreen/dieodd",
    )
    refused(ValueError, "known: ", source="gpt2")
    refused(TypeError, "source must be a name", "dict", source={})
    with pytest.raises(ValueError, match="did you mean multiscreen/paper"):
        convert.to_torch("multiscreen/papr", {}, MULTISCREEN)
    with pytest.raises(ValueError, match="did you mean multiscreen/hf"):
        convert.describe("multiscreen/HF")


def test_wrong_config_class():
    refused(TypeError, "MultiscreenConfig", "TransformerConfig", config=TRANSFORMER)
    refused(TypeError, "TransformerConfig", "dict", source=LLAMA, config={})


def test_not_a_state_dict():
    refused(TypeError, "state_dict must map names to tensors", "list", state=[1])


def test_missing():
    state = named()
    del state["layers.1.W_G"]
    refused(ValueError, "missing layers.1.W_G (2, 10, 7)", state=state)


def test_extra():
    state = named() | {"layers.0.W_X": np.zeros((3, 4))}
    refused(ValueError, "unexpected layers.0.W_X (3, 4)", state=state)


def test_wrong_shape_is_spelled_in_config_fields():
    state = named("multiscreen/lucidrains")
    name = "layers.2.to_queries_gates.weight"
    state[name] = state[name][:, :9]
    refused(
        ValueError,
        f"{name} has shape (22, 9), expected (22, 10) = (num_heads*(key_dim+value_dim), model_dim)",
        source="multiscreen/lucidrains",
        state=state,
    )


def test_not_an_array_and_not_float():
    refused(ValueError, "s_E is not an array but a float", state=named() | {"s_E": 0.0})
    quantised = np.zeros((13, 10), np.int8)
    refused(ValueError, "W_E has dtype int8", "floating", state=named() | {"W_E": quantised})


def test_all_problems_at_once_but_no_more_than_ten():
    state = named()
    state = {f"other.{i}": np.zeros(2) for i in range(30)} | {"W_E": state["W_E"][:5]}
    message = refused(ValueError, "W_E has shape (5, 10), expected (13, 10)", "more", state=state)
    assert message.count(";") == 10
    # 1 wrong + 26 missing + 30 unexpected - 10 shown
    assert "and 47 more" in message


def test_names_of_another_source():
    state = named("multiscreen/hf")
    refused(ValueError, "names of source 'multiscreen/hf'", source="multiscreen/dieod", state=state)


def test_wrapped_names():
    state = {f"_orig_mod.{name}": x for name, x in named().items()}
    refused(ValueError, "all names begin with '_orig_mod.'", state=state)


@pytest.mark.parametrize(
    ("field", "value", "part"),
    [
        ("num_heads", 3, "expected (12, 10) = (num_heads*key_dim, model_dim)"),
        ("model_dim", 12, "expected (13, 12) = (vocab_size, model_dim)"),
        ("key_dim", 8, "expected (16, 10) = (num_heads*key_dim, model_dim)"),
        ("vocab_size", 50, "expected (50, 10) = (vocab_size, model_dim)"),
        ("num_layers", 2, "tensors of 3 layers, config.num_layers is 2"),
        ("num_layers", 4, "tensors of 3 layers, config.num_layers is 4"),
    ],
)
def test_config_of_another_shape(field, value, part):
    config = dataclasses.replace(MULTISCREEN, **{field: value})
    state = named("multiscreen/dieod")
    refused(ValueError, part, source="multiscreen/dieod", state=state, config=config)


def test_tied_head_must_agree():
    config = dataclasses.replace(TRANSFORMER, tie_embeddings=True)
    state = named(LLAMA, TRANSFORMER)
    refused(
        ValueError,
        "lm_head.weight differs from model.embed_tokens.weight",
        "tie_embeddings=True",
        source=LLAMA,
        state=state,
        config=config,
    )


def test_final_norm_gain_must_be_one_where_we_have_none():
    config = dataclasses.replace(TRANSFORMER, final_norm_gain=False)
    state = named(LLAMA, TRANSFORMER)
    refused(
        ValueError,
        "model.norm.weight",
        "set final_norm_gain=True",
        source=LLAMA,
        state=state,
        config=config,
    )


def test_bias_is_named():
    state = named(LLAMA, TRANSFORMER)
    state["model.layers.0.self_attn.q_proj.bias"] = np.zeros(24, np.float32)
    refused(
        ValueError,
        "unexpected model.layers.0.self_attn.q_proj.bias (24,)",
        source=LLAMA,
        state=state,
        config=TRANSFORMER,
    )


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda t: t["layers"]["tiles"].pop("gate"), "missing layers/tiles/gate (3, 10, 2, 7)"),
        (lambda t: t.update(head=np.zeros(3)), "unexpected head (3,)"),
        (
            lambda t: t["layers"]["tiles"].update(query=np.zeros((3, 10, 2, 5))),
            "layers/tiles/query has shape (3, 10, 2, 5), expected (3, 10, 2, 4) = "
            "(num_layers, model_dim, num_heads, key_dim)",
        ),
    ],
)
def test_bad_trees(change, part):
    tree = jax.tree.map(np.copy, random_tree(MULTISCREEN))
    change(tree)
    with pytest.raises(ValueError, match="parameters for multiscreen/hf") as caught:
        convert.to_torch("multiscreen/hf", tree, MULTISCREEN)
    assert part in str(caught.value)


def test_params_must_be_a_dict():
    with pytest.raises(TypeError, match="nested dict of arrays, got list"):
        convert.to_torch("multiscreen/paper", [1], MULTISCREEN)
