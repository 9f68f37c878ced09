"""Decode kernels, interpreted: the dense result in every case, and nothing read in vain."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

import pallas_kernels
from pallas_kernels.screening import decode_tpu, screening_decode
from pallas_kernels.screening.summaries import (
    BLOCK_SLOTS,
    may_accept,
    similarity_bound,
    summarize,
)
from tests.jax_internals import races_found
from tests.marks import slow_unless
from tests.screening.decode_cases import clustered_keys, make_case

_WINDOWS, _WIDTHS = (1.5, 17.0, 256.0, np.inf), (0.02, 0.5, 0.98)
_TILES = {"window": np.repeat(_WINDOWS, 3), "width": np.tile(_WIDTHS, 4)}
_TOLERANCE = 2e-5  # the narrowest trim magnifies the rounding of a similarity by 2 / 0.02
_KERNELS = ("pallas_tpu", "pallas_gpu")

_jitted = jax.jit(screening_decode, static_argnames="implementation")


def _check(case, implementation, summarized):
    summaries = summarize(case.arguments[1]) if summarized else None
    with pallas_kernels.interpret_kernels():
        got = _jitted(*case.arguments, summaries=summaries, implementation=implementation)
    assert np.abs(case.want).max() > 0.1
    np.testing.assert_allclose(got, case.want, atol=_TOLERANCE)


@pytest.mark.parametrize("summarized", [False, True])
@pytest.mark.parametrize(
    ("queries", "dtype"),
    slow_unless(((1, "float32"),), ((1, "float32"), (3, "float32"), (1, "bfloat16"))),
)
@pytest.mark.parametrize("implementation", ["chunked", *_KERNELS])
def test_every_window_and_width(implementation, queries, dtype, summarized):
    """Growing caches, rings smaller than the context, ragged rows, documents that start late."""
    rows = {"lengths": (300, 133, 0), "queries": queries, "dtype": dtype, "slots": 1792, **_TILES}
    _check(make_case(**rows), implementation, summarized)
    _check(make_case(**rows, capacity=100, seed=1), implementation, summarized)
    late = make_case(**rows, start=(290, 40, 0), make_keys=clustered_keys, seed=2)
    _check(late, implementation, summarized)


@pytest.mark.parametrize("summarized", [False, True])
@pytest.mark.parametrize("implementation", ["chunked", *_KERNELS])
def test_a_ring_of_several_spans(implementation, summarized):
    case = make_case((9000,), (300.0, np.inf), (0.3, 0.5), dims=(16, 16), make_keys=clustered_keys)
    _check(case, implementation, summarized)


def _may_accept(case):
    """[B, S]: whether the summaries let the slot's own tile read the slot's block."""
    q, keys, width = case.arguments[0], case.arguments[1], case.arguments[-1]
    summaries = summarize(keys)
    may = []
    for h in range(q.shape[2]):
        bound = similarity_bound(q[:, :, h, None], *(x[:, None] for x in summaries))[..., 0]
        of_tile = np.asarray(may_accept(bound, width[h]).any(1))
        may.append(np.repeat(of_tile, BLOCK_SLOTS, axis=1)[:, : keys.shape[1]])
    return np.stack(may)[np.maximum(case.owner, 0), :, np.arange(len(case.owner))].T


def _anywhere(flags, run):
    """Flags of slots, spread over the aligned run of slots that each lies in."""
    groups = flags.reshape(len(flags), -1, run).any(-1)
    return np.repeat(groups, run, axis=1)


@pytest.mark.parametrize("implementation", _KERNELS)
def test_rejected_keys_and_values_are_not_read(implementation):
    """Poison in all that a kernel has no business reading leaves the result as it is.

    A key that fits the query, where a NaN would fail every comparison; and values of NaN.
    """
    keys_of = functools.partial(clustered_keys, run=512, spread=0.05)
    case = make_case((5000, 3000), (300.0, np.inf), (0.3, 0.5), dims=(16, 16), make_keys=keys_of)
    key_run, value_run = {
        "pallas_tpu": (decode_tpu.KEY_SLOTS, decode_tpu.VALUE_SLOTS),
        "pallas_gpu": (BLOCK_SLOTS, 1),
    }[implementation]
    may = _may_accept(case) & (case.owner >= 0)
    keys_read, values_read = _anywhere(may, key_run), _anywhere(case.accepted, value_run)
    assert keys_read.mean() < 0.7
    assert values_read.mean() < 0.3
    q, keys, values, *rest = case.arguments
    summaries = summarize(keys)
    fitting = q[:, 0, np.maximum(case.owner, 0)]  # any query accepts itself
    keys = jnp.where(keys_read[..., None], keys, fitting)
    values = jnp.where(values_read[..., None], values, jnp.nan)
    with pallas_kernels.interpret_kernels():
        got = _jitted(q, keys, values, *rest, summaries=summaries, implementation=implementation)
    np.testing.assert_allclose(got, case.want, atol=_TOLERANCE)


def test_nan_is_not_taken_for_a_rejected_key():
    case = make_case((300,), (17.0, np.inf), (0.5, 0.5))
    q, keys, values, *rest = case.arguments
    keys = keys.at[:, case.owner == 1].set(jnp.nan)
    with pallas_kernels.interpret_kernels():
        h = _jitted(q, keys, values, *rest, implementation="pallas_gpu")
    np.testing.assert_allclose(h[:, :, 0], case.want[:, :, 0], atol=_TOLERANCE)
    assert np.isnan(h[:, :, 1]).all()


@pytest.mark.parametrize("summarized", slow_unless((True,), (False, True)))
@pytest.mark.slow
def test_tpu_copies_do_not_race(summarized):
    """Rings within a span and over several, whole copies and parts, an empty row."""
    case = make_case((9000, 0), (17.0, np.inf), (0.5, 0.3), dims=(16, 16), make_keys=clustered_keys)
    summaries = summarize(case.arguments[1]) if summarized else None
    params = pltpu.InterpretParams(detect_races=True)
    with pallas_kernels.interpret_kernels(params):
        got = screening_decode(*case.arguments, summaries=summaries, implementation="pallas_tpu")
    np.testing.assert_allclose(got, case.want, atol=_TOLERANCE)
    assert not races_found()


def test_cpu_default_is_chunked():
    case = make_case((40,), (17.0,), (0.5,))
    np.testing.assert_array_equal(
        _jitted(*case.arguments), _jitted(*case.arguments, implementation="chunked")
    )


@pytest.mark.parametrize("implementation", _KERNELS)
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"queries": 5}, "at most 4 queries"),
        ({"dims": (12, 16)}, "K must be"),
        ({"dims": (16, 24)}, "V must be"),
    ],
)
def test_unsupported_shapes_say_why(implementation, change, reason):
    case = make_case((40,), (17.0,), (0.5,), **change)
    with pallas_kernels.interpret_kernels(), pytest.raises(NotImplementedError, match=reason):
        screening_decode(*case.arguments, implementation=implementation)
    both = functools.partial(screening_decode, implementation=(implementation, "chunked"))
    with pallas_kernels.interpret_kernels():
        np.testing.assert_allclose(both(*case.arguments), case.want, atol=_TOLERANCE)


def test_tpu_needs_whole_copies():
    q, keys, values, *rest = make_case((40,), (17.0,), (0.5,)).arguments
    short = (q, keys[:, :200], values[:, :200], *rest)
    with (
        pallas_kernels.interpret_kernels(),
        pytest.raises(NotImplementedError, match="multiple of 128"),
    ):
        screening_decode(*short, implementation="pallas_tpu")


@pytest.mark.parametrize("implementation", _KERNELS)
def test_float64_is_refused(implementation):
    with jax.enable_x64(True):
        case = make_case((40,), (17.0,), (0.5,), dtype=jnp.float64)
        with (
            pallas_kernels.interpret_kernels(),
            pytest.raises(NotImplementedError, match="float64"),
        ):
            screening_decode(*case.arguments, implementation=implementation)
