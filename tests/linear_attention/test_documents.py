"""Packed documents: isolated bit for bit, and each what it would be alone."""

import functools

import jax
import numpy as np
import pytest

from tests.linear_attention.cases import (
    Case,
    assert_close,
    assert_same,
    make_case,
    run,
    run_float64,
)
from tests.marks import slow_unless

LENGTH = 200
# A row for every second start: documents as (start, stop); what is between them is padding.
ROWS = (
    ((0, 1), (1, 150), (160, 200)),
    ((0, 37), (37, 38), (38, 128)),
    ((3, 63), (63, 127), (130, 200)),
    ((0, 64), (64, 192), (192, 200)),
    ((0, 65), (70, 71), (199, 200)),
    ((100, 130), (130, 190), (190, 195)),
)
OPS = slow_unless(("gated_delta_rule",), ("normalised", "retention", "ssd", "gated_delta_rule"))
PER_TOKEN = ("q", "k", "v", "g", "beta")


def segments():
    ids = np.zeros((len(ROWS), LENGTH), np.int32)
    for row, documents in enumerate(ROWS):
        for number, (start, stop) in enumerate(documents, start=1):
            ids[row, start:stop] = number
    return ids


@functools.cache
def packed(op):
    """A case of all rows, and its results."""
    case = make_case(op, LENGTH, batch=len(ROWS))
    results = run(op, case, segments())
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(results))
    return case, results


def per_token(tree):
    return {
        x: a for x, a in tree.items() if x.removeprefix("d") in (*PER_TOKEN, "y") and a.ndim > 1
    }


@pytest.mark.parametrize("op", OPS)
def test_each_equals_the_document_alone(op):
    """A document alone is a row of its own, from position 0, by the recurrence in float64."""
    case, got = packed(op)
    alone = [(row, *span) for row, documents in enumerate(ROWS) for span in documents]
    first, last = (np.array([ROWS[row][i] == tuple(span) for row, *span in alone]) for i in (0, -1))

    def move(x):
        rows = np.zeros((len(alone), LENGTH, *x.shape[2:]), x.dtype)
        for number, (row, start, stop) in enumerate(alone):
            rows[number, : stop - start] = x[row, start:stop]
        return rows

    def states(x, which):
        x = np.asarray(x)[[row for row, *_ in alone]]
        return x * which.reshape(-1, *[1] * (x.ndim - 1))

    inputs = {
        name: jax.tree.map(lambda x: states(x, first), x)
        if name == "state"
        else (x if x.ndim == 1 else move(x))
        for name, x in case.inputs.items()
    }
    dy, dstate = case.cotangents
    cotangents = (move(dy), jax.tree.map(lambda x: states(x, last), dstate))
    real = np.int32([np.arange(LENGTH) < stop - start for _, start, stop in alone])
    wanted = run_float64(op, Case(inputs, cotangents), real)

    moved = {x: move(np.asarray(a)) for x, a in per_token(got).items()}
    for number in range(len(alone)):
        part = ({x: a[number] for x, a in tree.items()} for tree in (moved, per_token(wanted)))
        assert_close(*part, 1e-5, 2e-5, f"document {alone[number]}", floor=1.0)
    for name, which in (("state", last), ("dstate", first)):
        for a, b in zip(*(jax.tree.leaves(tree[name]) for tree in (got, wanted)), strict=True):
            assert_close({"s": a}, {"s": b[which]}, 1e-5)
    if op == "retention":
        assert_close({"dg": got["dg"]}, {"dg": wanted["dg"]})


@pytest.mark.parametrize("op", OPS)
def test_others_do_not_see_a_document_change(op):
    case, results = packed(op)
    ids = segments()
    for number in (1, 2, 3):
        there = ids == number

        def change(x, there=there):
            other = np.roll(x, 1, axis=0)
            return np.where(there.reshape(*there.shape, *[1] * (x.ndim - 2)), other, x)

        inputs = {
            x: change(a) if x != "state" and a.ndim > 1 else a for x, a in case.inputs.items()
        }
        again = run(op, Case(inputs, (change(case.cotangents[0]), case.cotangents[1])), ids)
        elsewhere = ~there
        for name, a in per_token(results).items():
            assert_same(np.asarray(again[name])[elsewhere], np.asarray(a)[elsewhere], name)
            assert (np.asarray(again[name])[there] != np.asarray(a)[there]).any(), name
        if number == 1:
            assert_same(again["state"], results["state"])
        if number == 3:
            assert_same(again["dstate"], results["dstate"])


@pytest.mark.parametrize("op", OPS)
def test_padding_may_hold_anything(op):
    case, results = packed(op)
    ids = segments()
    for filling in (np.nan, np.inf, 1e30):

        def fill(x, filling=filling):
            return np.where((ids == 0).reshape(*ids.shape, *[1] * (x.ndim - 2)), filling, x)

        inputs = {x: fill(a) if x != "state" and a.ndim > 1 else a for x, a in case.inputs.items()}
        again = run(op, Case(inputs, (fill(case.cotangents[0]), case.cotangents[1])), ids)
        assert_same(again, results)
    for x in per_token(results).values():
        assert not np.asarray(x)[ids == 0].any()


def test_a_row_of_padding_keeps_its_state():
    case = make_case("gated_delta_rule", LENGTH, batch=len(ROWS))
    got = run("gated_delta_rule", case, np.zeros_like(segments()))
    assert not np.asarray(got["y"]).any()
    assert_same(got["state"], case.inputs["state"])
    assert_same(got["dstate"], case.cotangents[1])


@pytest.mark.parametrize("op", ["ssd", "gated_delta_rule"])
def test_one_document_is_no_documents(op):
    case = make_case(op, LENGTH, batch=len(ROWS))
    got = run(op, case, np.full_like(segments(), 7))
    assert_close(got, run(op, case), 1e-6, 1e-6)
