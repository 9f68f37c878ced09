"""Screening as GPU kernels, forward and backward, through Pallas' Triton lowering.

A pair costs a few products on the tensor cores and about eight operations elsewhere, so what
counts is the work per pair outside the products:

- The softmask m = 1/2 + (cos a cos b + sin a sin b) / 2 takes two multiply-adds. The cosines of one
  side of a tile are made once per program; those of the other are turned from tile to tile.
- Only the tiles at both ends of a window compare distances; between them every pair counts.
- Relevance is a plain sum over keys: no running maximum, nothing to rescale. A tile in which no
  key is accepted ends after its similarities.

The public layout [B, T, H, K] is read as it is; nothing is transposed or padded in memory. All use
of Triton by this op is in this file.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float, Int

from pallas_kernels.common import dispatch
from pallas_kernels.screening.gpu_block_sizes import Block, block_sizes

_MIN_DOT = 16  # the least extent of an operand of a product
_TURN = 2.0**32  # angles are counted in turns / 2^32, so that integer products wrap as angles do


def screening_pallas_gpu(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T H V"],
    window: Float[Array, "H"],
    width: Float[Array, "H"],
    segment_ids: Int[Array, "B T"] | None = None,
    *,
    precision: lax.PrecisionLike = None,
) -> Float[Array, "B T H V"]:
    """TODO"""
    del precision
    dtypes = [x.dtype for x in (q, k, v)]
    if len(set(dtypes)) > 1 or dtypes[0] not in (jnp.float32, jnp.bfloat16):
        raise NotImplementedError(f"q, k, v must be all float32 or all bfloat16, got {dtypes}")
    block_sizes(_arch(), q.dtype, q.shape[-1], v.shape[-1])
    return _screening(q, k, v, window, width, segment_ids)


def _arch():
    return 80


# -- what a program needs to know of its head ------------------------------------------------------


class _Head(NamedTuple):
    """Scalars of one head, or arrays [H] of them."""

    reach: Array  # int32: largest distance at which a key counts
    turns: Array  # int32: half a turn per window, in turns / 2^32
    turns_rest: Array  # float32: what the integer leaves, in turns
    sharpness: Array  # float32: 1 / width


def _heads(window, width, length):
    window, width = window.astype(jnp.float32), width.astype(jnp.float32)
    reach = jnp.minimum(jnp.ceil(window) - 1, length - 1).astype(jnp.int32)
    turns = jnp.minimum(0.5 / window, 0.5 - 2.0**-20) * _TURN
    whole = jnp.round(turns)
    return _Head(
        jnp.clip(reach, 0, length - 1),  # whatever the window is, NaN included
        whole.astype(jnp.int32),
        (turns - whole) / _TURN,
        1 / width,
    )


# -- one tile --------------------------------------------------------------------------------------


def _cos_sin(distance, head):
    """Cosine and sine of pi distance / window; accurate at any integer distance."""
    turn = (distance * head.turns).astype(jnp.float32) * (1 / _TURN)
    half = np.float32(np.pi) * (turn + distance.astype(jnp.float32) * head.turns_rest)
    square = half * half
    cos = sin = jnp.full_like(half, 0)
    for n in range(7, -1, -1):
        cos = cos * square + np.float32((-1) ** n / math.factorial(2 * n))
        sin = sin * square + np.float32((-1) ** n / math.factorial(2 * n + 1))
    sin = sin * half
    return 1 - 2 * sin * sin, 2 * sin * cos


def _rotate(cos, sin, by_cos, by_sin):
    return cos * by_cos - sin * by_sin, sin * by_cos + cos * by_sin


def _dot(a, b, transpose_b=False):
    dims = (((1,), (1 if transpose_b else 0,)), ((), ()))
    precision = None
    if a.dtype == jnp.float32:
        precision = lax.DotAlgorithmPreset.TF32_TF32_F32_X3
        if dispatch.interpretation():
            precision = lax.Precision.HIGHEST
    return lax.dot_general(a, b, dims, precision=precision, preferred_element_type=jnp.float32)


def _load(ref, start, rows, length, columns=None):
    """Rows of a [T] or [T, ...] ref; zeros beyond the length, and from `columns` on if given."""
    shape = (rows, *ref.shape[1:])
    return plgpu.load(
        ref.at[pl.ds(start, rows)], mask=(mask := _inside(shape, start, length, columns)),
        other=None if mask is None else 0,
    )


def _store(ref, x, start, length, columns=None):
    mask = _inside(x.shape, start, length, columns)
    plgpu.store(ref.at[pl.ds(start, x.shape[0])], x.astype(ref.dtype), mask=mask)


def _inside(shape, start, length, columns):
    """Where a block lies inside its array; None if it always does."""
    mask = None
    if length % shape[0]:
        mask = start + lax.broadcasted_iota(jnp.int32, shape, 0) < length
    if columns is not None and columns < shape[1]:
        inside = lax.broadcasted_iota(jnp.int32, shape, 1) < columns
        mask = inside if mask is None else mask & inside
    return mask


def _trim_root(similarity, head, distance, segments):
    """max(1 - (1 - s) / width, 0), the root of the trim; 0 outside window and document.

    In this form the constant is exact: 1 - x has no rounding error for any x > 1.
    """
    root = jnp.maximum(similarity * head.sharpness + (1 - head.sharpness), 0)
    if distance is not None:
        root = jnp.where((distance >= 0) & (distance <= head.reach), root, 0)
    if segments is not None:
        rows, columns = segments
        root = jnp.where(rows[:, None] == columns[None, :], root, 0)
    return root


def _query_segments(segments):
    return jnp.where(segments == 0, jnp.iinfo(jnp.int32).min, segments)


def _visit(tile, span, carry):
    """carry after tile(block, carry, edge) for all blocks of a span."""
    inner_start = jnp.clip(span.inner_start, span.start, span.stop)
    inner = jnp.maximum(jnp.minimum(span.inner_stop, span.stop) - inner_start, 0)

    def edge_tile(n, carry):
        block = span.start + n
        return tile(jnp.where(block < inner_start, block, block + inner), carry, True)

    carry = lax.fori_loop(0, span.stop - span.start - inner, edge_tile, carry)
    return lax.fori_loop(
        inner_start, inner_start + inner, lambda block, carry: tile(block, carry, False), carry
    )


class _Span(NamedTuple):
    start: Array
    stop: Array
    inner_start: Array
    inner_stop: Array


def _key_span(first_query, size, reach, length):
    """Blocks of keys that hold a key which some query of the block reads."""
    last_query = first_query + size.queries - 1
    return _Span(
        lax.div(jnp.maximum(first_query - reach, 0), size.keys),
        lax.div(jnp.minimum(last_query, length - 1), size.keys) + 1,
        lax.div(jnp.maximum(last_query - reach, 0) + size.keys - 1, size.keys),
        lax.div(first_query + 1, size.keys),
    )


def _query_span(first_key, size, reach, length):
    """Blocks of queries that hold a query which reads some key of the block."""
    last_key = first_key + size.keys - 1
    return _Span(
        lax.div(first_key, size.queries),
        lax.div(jnp.minimum(last_key + reach, length - 1), size.queries) + 1,
        lax.div(last_key + size.queries - 1, size.queries),
        lax.div(jnp.minimum(first_key + reach + 1, length), size.queries),
    )


def _forward_kernel(head_refs, q_ref, k_ref, v_ref, segments_ref, h_ref, *, size, length, dims):
    head = _Head(*(ref[0] for ref in head_refs))
    key_dim, _ = dims
    start = (pl.num_programs(1) - 1 - pl.program_id(1)) * size.queries
    q_ck = _load(q_ref, start, size.queries, length, key_dim)
    row, column = lax.iota(jnp.int32, size.queries), lax.iota(jnp.int32, size.keys)
    row_angle, (cos_l, sin_l) = _cos_sin(row, head), _cos_sin(column, head)
    if segments_ref is not None:
        segments_c = _query_segments(_load(segments_ref, start, size.queries, length))

    def tile(block, h_cv, edge):
        key_start = block * size.keys
        distance = start - key_start
        k_lk = _load(k_ref, key_start, size.keys, length, key_dim)
        segments = None
        if segments_ref is not None:
            segments = segments_c, _load(segments_ref, key_start, size.keys, length)
        root_cl = _trim_root(
            _dot(q_ck, k_lk, transpose_b=True), head,
            (distance + row)[:, None] - column[None, :] if edge else None, segments,
        )

        def add(h_cv):
            v_lv = _load(v_ref, key_start, size.keys, length)
            cos_c, sin_c = _rotate(*row_angle, *_cos_sin(distance, head))
            mask_cl = 0.5 + (0.5 * cos_c)[:, None] * cos_l + (0.5 * sin_c)[:, None] * sin_l
            return h_cv + _dot((root_cl * root_cl * mask_cl).astype(v_lv.dtype), v_lv)

        return lax.cond(jnp.max(root_cl) > 0, add, lambda h_cv: h_cv, h_cv)

    h_cv = jnp.zeros((size.queries, v_ref.shape[1]), jnp.float32)
    span = _key_span(start, size, head.reach, length)
    _store(h_ref, _visit(tile, span, h_cv), start, length)


def _queries_kernel(
    head_refs, q_ref, k_ref, v_ref, dh_ref, segments_ref, dq_ref, dwindow_ref, dwidth_ref,
    *, size, length, dims,
):
    head = _Head(*(ref[0] for ref in head_refs))
    key_dim, _ = dims
    program = pl.num_programs(1) - 1 - pl.program_id(1)
    start = program * size.queries
    q_ck = _load(q_ref, start, size.queries, length, key_dim)
    dh_cv = _load(dh_ref, start, size.queries, length)
    row, column = lax.iota(jnp.int32, size.queries), lax.iota(jnp.int32, size.keys)
    row_angle, (cos_l, sin_l) = _cos_sin(row, head), _cos_sin(column, head)
    if segments_ref is not None:
        segments_c = _query_segments(_load(segments_ref, start, size.queries, length))

    def tile(block, carry, edge):
        key_start = block * size.keys
        distance = start - key_start
        k_lk = _load(k_ref, key_start, size.keys, length, key_dim)
        segments = None
        if segments_ref is not None:
            segments = segments_c, _load(segments_ref, key_start, size.keys, length)
        distance_cl = (distance + row)[:, None] - column[None, :]
        root_cl = _trim_root(
            _dot(q_ck, k_lk, transpose_b=True), head, distance_cl if edge else None, segments
        )

        def add(carry):
            dq_ck, dwindow_c, dwidth_c = carry
            v_lv = _load(v_ref, key_start, size.keys, length)
            cos_c, sin_c = _rotate(*row_angle, *_cos_sin(distance, head))
            mask_cl = 0.5 + (0.5 * cos_c)[:, None] * cos_l + (0.5 * sin_c)[:, None] * sin_l
            slope_cl = sin_c[:, None] * cos_l - cos_c[:, None] * sin_l
            droot_cl = _dot(dh_cv, v_lv, transpose_b=True) * root_cl
            dwindow_cl = droot_cl * root_cl * slope_cl * distance_cl.astype(jnp.float32)
            dsimilarity_cl = droot_cl * mask_cl
            return (
                dq_ck + _dot(dsimilarity_cl.astype(k_lk.dtype), k_lk),
                dwindow_c + jnp.sum(dwindow_cl, axis=1),
                dwidth_c + jnp.sum(dsimilarity_cl * (1 - root_cl), axis=1),
            )

        return lax.cond(jnp.max(root_cl) > 0, add, lambda carry: carry, carry)

    zeros = jnp.zeros(size.queries, jnp.float32)
    carry = jnp.zeros(q_ck.shape, jnp.float32), zeros, zeros
    span = _key_span(start, size, head.reach, length)
    dq_ck, dwindow_c, dwidth_c = _visit(tile, span, carry)
    _store(dq_ref, dq_ck * (2 * head.sharpness), start, length, key_dim)
    dwindow_ref[program] = jnp.sum(dwindow_c)
    dwidth_ref[program] = jnp.sum(dwidth_c)


def _keys_kernel(
    head_refs, q_ref, k_ref, v_ref, dh_ref, segments_ref, dk_ref, dv_ref, *, size, length, dims
):
    head = _Head(*(ref[0] for ref in head_refs))
    key_dim, _ = dims
    start = pl.program_id(1) * size.keys
    k_lk = _load(k_ref, start, size.keys, length, key_dim)
    v_lv = _load(v_ref, start, size.keys, length)
    row, column = lax.iota(jnp.int32, size.keys), lax.iota(jnp.int32, size.queries)
    row_angle, (cos_c, sin_c) = _cos_sin(-row, head), _cos_sin(column, head)
    if segments_ref is not None:
        segments_l = _load(segments_ref, start, size.keys, length)

    def tile(block, carry, edge):
        query_start = block * size.queries
        distance = query_start - start
        q_ck = _load(q_ref, query_start, size.queries, length, key_dim)
        segments = None
        if segments_ref is not None:
            segments_c = _load(segments_ref, query_start, size.queries, length)
            segments = segments_l, _query_segments(segments_c)
        root_lc = _trim_root(
            _dot(k_lk, q_ck, transpose_b=True), head,
            (distance - row)[:, None] + column[None, :] if edge else None, segments,
        )

        def add(carry):
            dk_lk, dv_lv = carry
            dh_cv = _load(dh_ref, query_start, size.queries, length)
            cos_l, sin_l = _rotate(*row_angle, *_cos_sin(distance, head))
            mask_lc = 0.5 + (0.5 * cos_l)[:, None] * cos_c - (0.5 * sin_l)[:, None] * sin_c
            masked_lc = root_lc * mask_lc
            dsimilarity_lc = _dot(v_lv, dh_cv, transpose_b=True) * masked_lc
            return (
                dk_lk + _dot(dsimilarity_lc.astype(q_ck.dtype), q_ck),
                dv_lv + _dot((root_lc * masked_lc).astype(dh_cv.dtype), dh_cv),
            )

        return lax.cond(jnp.max(root_lc) > 0, add, lambda carry: carry, carry)

    carry = jnp.zeros(k_lk.shape, jnp.float32), jnp.zeros(v_lv.shape, jnp.float32)
    dk_lk, dv_lv = _visit(tile, _query_span(start, size, head.reach, length), carry)
    _store(dk_ref, dk_lk * (2 * head.sharpness), start, length, key_dim)
    _store(dv_ref, dv_lv, start, length)


def _call(kernel, size, block_rows, arrays, window, width, segment_ids, outputs):
    batch, length, num_heads, key_dim = arrays[0].shape
    value_dim = arrays[2].shape[-1]
    grid = (num_heads, pl.cdiv(length, block_rows), batch)
    padded = max(pl.cdiv(length, n) * n for n in (size.queries, size.keys))

    def spec(x):
        if x.ndim == 1:
            return pl.BlockSpec((1,), lambda h, i, b: (h,))
        if x.ndim == 2:
            return pl.BlockSpec((None, padded), lambda h, i, b: (b, 0))
        if x.ndim == 3:
            return pl.BlockSpec((None, None, x.shape[2]), lambda h, i, b: (b, h, 0))
        return pl.BlockSpec(
            (None, padded, None, max(x.shape[-1], _MIN_DOT)), lambda h, i, b: (b, 0, h, 0)
        )

    operands = (_heads(window, width, length), *arrays, segment_ids)
    body = partial(kernel, size=size, length=length, dims=(key_dim, value_dim))
    return pl.pallas_call(
        body,
        grid=grid,
        in_specs=jax.tree.map(spec, operands),
        out_specs=[spec(x) for x in outputs],
        out_shape=outputs,
        interpret=dispatch.interpretation(),
        compiler_params=plgpu.CompilerParams(num_warps=size.warps, num_stages=size.stages),
        name=kernel.__name__,
    )(*operands)


@jax.custom_vjp
def _screening(q, k, v, window, width, segment_ids):
    sizes = block_sizes(_arch(), q.dtype, q.shape[-1], v.shape[-1])
    out = [jax.ShapeDtypeStruct(v.shape, v.dtype)]
    size = sizes.forward
    (h,) = _call(_forward_kernel, size, size.queries, (q, k, v), window, width, segment_ids, out)
    return h


def _screening_fwd(*args):
    return _screening(*args), args


def _screening_bwd(residuals, dh):
    q, k, v, window, width, segment_ids = residuals
    batch, length, num_heads, key_dim = q.shape
    sizes = block_sizes(_arch(), q.dtype, key_dim, v.shape[-1])
    args = (q, k, v, dh), window, width, segment_ids
    like = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype)
    size = sizes.queries
    parts = jax.ShapeDtypeStruct((batch, num_heads, pl.cdiv(length, size.queries)), jnp.float32)
    dq, dwindow, dwidth = _call(
        _queries_kernel, size, size.queries, *args, [like(q), parts, parts]
    )
    size = sizes.keys
    dk, dv = _call(_keys_kernel, size, size.keys, *args, [like(k), like(v)])
    per_token = 0.5 / window.astype(jnp.float32)
    dwindow = 2 * jnp.pi * per_token * (per_token * dwindow.sum((0, 2)))
    dwidth = 2 / width * dwidth.sum((0, 2))
    return dq, dk, dv, dwindow.astype(window.dtype), dwidth.astype(width.dtype), None


_screening.defvjp(_screening_fwd, _screening_bwd)
