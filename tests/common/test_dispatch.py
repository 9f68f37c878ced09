"""Which implementation is chosen, where, and what is said when it cannot run."""

import jax
import jax.numpy as jnp
import pytest

import pallas_kernels
from pallas_kernels import screening
from pallas_kernels.common import dispatch
from tests.jax_internals import on_device


def refuses(*args):
    raise NotImplementedError("key dimensions are odd")


def test_the_default_follows_the_platform():
    assert dispatch.candidates(None) == ("chunked",)
    with on_device("TPU v5 lite", "tpu"):
        assert dispatch.candidates(None) == ("pallas_tpu", "chunked")
    with on_device("NVIDIA H100", "cuda"):
        assert dispatch.candidates(None) == ("pallas_gpu", "chunked")


def test_a_named_kernel_never_falls_back():
    available = {"chunked": lambda: "chunked", "pallas_tpu": refuses, "pallas_gpu": lambda: "gpu"}
    with pytest.raises(NotImplementedError, match=r"compiled for a GPU, and this is a CPU"):
        dispatch.run("op", available, "pallas_gpu")
    with on_device("TPU v5 lite", "tpu"):
        with pytest.raises(NotImplementedError, match="pallas_tpu: key dimensions are odd"):
            dispatch.run("op", available, "pallas_tpu")
        assert dispatch.run("op", available, None) == "chunked"
    with pytest.raises(NotImplementedError, match="reference: only chunked, pallas_tpu"):
        dispatch.run("op", available, "reference")
    with pytest.raises(ValueError, match="'triton'"):
        dispatch.run("op", available, "triton")


def test_names_in_order_and_what_ran_is_recorded():
    available = {"chunked": lambda: "chunked", "pallas_tpu": refuses}
    with dispatch.record_choices() as choices, pallas_kernels.interpret_kernels():
        assert dispatch.run("op", available, ("pallas_tpu", "chunked")) == "chunked"
    assert choices == {"op": {"chunked"}}


def test_choices_are_recorded_when_a_function_is_traced():
    x = jnp.ones((1, 8, 1, 16))
    with dispatch.record_choices() as choices:
        jax.jit(screening).lower(x, x, x, jnp.array([2.0]), jnp.array([0.5]))
    assert choices == {"screening": {"chunked"}}


def test_interpretation_is_part_of_the_cache_key():
    traced = []

    @jax.jit
    def f(x):
        traced.append(dispatch.interpretation())
        return x

    f(1.0)
    with pallas_kernels.interpret_kernels():
        f(1.0)
    f(1.0)
    assert traced == [False, True]
