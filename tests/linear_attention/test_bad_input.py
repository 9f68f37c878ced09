"""Bad input to the ops: one clear line that names the argument."""

import inspect

import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import delta_rule, gated_delta_rule, linear_attention, retention, ssd
from pallas_kernels.linear_attention import NormalizedState

X = np.ones((2, 3, 4, 5), np.float32)
GATE = np.full((2, 3, 4), -0.1, np.float32)
OPS = {
    ssd: {"g": GATE},
    retention: {},
    linear_attention: {},
    delta_rule: {"beta": GATE},
    gated_delta_rule: {"g": GATE, "beta": GATE},
}


def call(op, **changes):
    # Without the type checks that tests add around it: users do not have them.
    return inspect.unwrap(op)(**{"q": X, "k": X, "v": X, **OPS[op], **changes})


CASES = [
    (ssd, {"k": X[..., :4]}, "q and k must share one shape [B,T,G,K], got (2, 3, 4, 5) and"),
    (ssd, {"q": X[0], "k": X[0]}, "q and k must share one shape"),
    (ssd, {"q": X[:, :0], "k": X[:, :0], "v": X[:, :0]}, "must not have an empty axis"),
    (ssd, {"q": X[..., :0], "k": X[..., :0]}, "must not have an empty axis, got (2, 3, 4, 0)"),
    (ssd, {"v": X[:1]}, "v must be [B,T,H,V] with B,T = (2, 3), got (1, 3, 4, 5)"),
    (ssd, {"q": X[:, :, :3], "k": X[:, :, :3]}, "4 heads of v must be a multiple of the 3 groups"),
    (ssd, {"v": X.astype(int)}, "v must be of a floating dtype, got int"),
    (ssd, {"g": GATE[..., :2]}, "g must be [B,T,H,...] with (2, 3, 4), got (2, 3, 2)"),
    (ssd, {"g": GATE[..., None]}, "g must be [B,T,H] = (2, 3, 4), got (2, 3, 4, 1)"),
    (ssd, {"g": GATE.astype(int)}, "g must be of a floating dtype"),
    (delta_rule, {"beta": GATE[:, :2]}, "beta must be"),
    (retention, {"g": GATE}, "g must be [H] = (4,), got (2, 3, 4)"),
    (retention, {"v": X[0]}, "v must be [B,T,H,V]"),
    (ssd, {"initial_state": X}, "initial_state must be [B,H,K,V] = (2, 4, 5, 5), got"),
    (linear_attention, {"normalize": True, "initial_state": X}, "a NormalizedState"),
    (ssd, {"segment_ids": np.ones((2, 4), int)}, "segment_ids must be [B,T] = (2, 3), got (2, 4)"),
    (ssd, {"segment_ids": np.ones((2, 3))}, "segment_ids must be integers, got float"),
    (ssd, {"chunk_size": 0}, "chunk_size must be an integer >= 1, got 0"),
    (ssd, {"chunk_size": True}, "chunk_size must be an integer >= 1, got True"),
    (
        linear_attention,
        {"normalize": True, "initial_state": NormalizedState(np.ones((2, 4, 5, 5)), X)},
        "keys of a NormalizedState must be [B,H,K] = (2, 4, 5), got (2, 3, 4, 5)",
    ),
    (ssd, {"implementation": "cuda"}, "implementation must be None or among"),
]


@pytest.mark.parametrize(("op", "changes", "part"), CASES)
def test_one_clear_line(op, changes, part):
    with pytest.raises(ValueError, match="must") as raised:
        call(op, **changes)
    assert part in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("op", OPS)
def test_a_named_implementation_never_falls_back(op):
    with pytest.raises(NotImplementedError, match="no usable implementation"):
        call(op, implementation="pallas_gpu")
    y, _ = call(op, implementation=("pallas_gpu", "chunked"))
    np.testing.assert_array_equal(y, call(op)[0])


def test_lists_and_numpy_numbers_are_taken():
    y, _ = call(ssd, q=X.tolist(), k=X.tolist(), v=jnp.asarray(X), segment_ids=[[1, 1, 1]] * 2)
    np.testing.assert_allclose(y, call(ssd)[0])
