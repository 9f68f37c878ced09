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
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from pallas_kernels.common import dispatch
from pallas_kernels.common.gpu import compute_capability
from pallas_kernels.common.kernel_call import kernel_call
from pallas_kernels.common.pallas import pl, plgpu
from pallas_kernels.screening.extent import Extent, extent_of
from pallas_kernels.screening.gpu_block_sizes import Block, BlockSizes, block_sizes

_MIN_DOT = 16  # the least extent of an operand of a product
_TURN = 2.0**32  # angles are counted in turns / 2^32, so that integer products wrap as angles do


def screening_pallas_gpu(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B S H K"],
    v: Float[Array, "B S H V"],
    window: Float[Array, " H"],
    width: Float[Array, " H"],
    segment_ids: Int[Array, "B N"] | None = None,
    gap: Int[Array, ""] | None = None,
    *,
    precision: lax.PrecisionLike = None,
) -> Float[Array, "B T H V"]:
    """`pallas_kernels.screening` for NVIDIA GPUs from sm_80 on; see there for the arguments.

        s_ij = q_i . k_j     alpha = max(1 - (1 - s_ij) / width, 0)^2
        m    = (1 + cos(pi (i - j) / window)) / 2 at 0 <= i - j < window, else 0
        h_i  = sum_j alpha m v_j                       (Multiscreen, arXiv:2604.01178 v3, eq. 9-12)

    Args:
        q, k: float32 or bfloat16, K among 8, 16, 32, 64, 128.
        v: of the same dtype, V among 32, 64, 128.
        segment_ids: documents count from 1; 0 is padding. Without it nothing is compared.
        precision: makes no difference. Products of float32 are always accurate (three TF32
            products each), those of bfloat16 exact with float32 sums; relevance and its
            derivative are rounded to the inputs' dtype before they are multiplied again.

    Returns:
        [B, T, H, V]. Differentiable (reverse mode) in q, k, v, window and width; the gradients of
        the last two are sums over programs, taken in float32 in a fixed order.

    Cost: `visited_tiles` says which pairs are visited. The forward takes 2 (K + V) FLOPs a pair,
    the backward 2 (4 K + 3 V) in two kernels that recompute relevance; a tile without any accepted
    key ends after 2 K. Memory beyond inputs and results: two numbers per head and block.

    Raises:
        NotImplementedError: for other dtypes or sizes, or an older GPU.
    """
    del precision
    if len({x.dtype for x in (q, k, v)}) > 1:
        raise NotImplementedError(
            f"q, k and v must share a dtype, got {q.dtype}, {k.dtype} and {v.dtype}"
        )
    _sizes(q, v)  # refuses what is not supported before anything is traced
    if segment_ids is not None:
        segment_ids = segment_ids.astype(jnp.int32)
    return _screening(q, k, v, window, width, segment_ids, gap)


def visited_tiles(
    length: int, window: float, block: Block, over: str = "queries"
) -> list[tuple[int, int]]:
    """The tiles (query block, key block) that one head visits in one sequence.

    Args:
        length: T.
        window: of the head, in tokens; may be infinite.
        block: tile size, from `gpu_block_sizes.block_sizes`.
        over: "queries" for the forward and the gradient of q, whose programs own a block of queries
            each; "keys" for the gradients of k and v.
    """
    spans = _visited(length, jnp.asarray([window]), block, over)
    pairs = [
        (i, j)
        for i, (start, stop) in enumerate(zip(*(x[0].tolist() for x in spans), strict=True))
        for j in range(start, stop)
    ]
    return pairs if over == "queries" else [(j, i) for i, j in pairs]


def count_visited_pairs(
    length: int, windows: Float[Array, " H"], block: Block, over: str = "queries"
) -> int:
    """Queries x keys of the `visited_tiles` of all heads."""
    starts, stops = (np.asarray(x, np.int64) for x in _visited(length, windows, block, over))
    return int(np.sum(stops - starts)) * block.queries * block.keys


@partial(jax.jit, static_argnums=(0, 2, 3))
def _visited(length, windows, block, over):
    """Of each head and program: its first tile, and where its tiles end, [H, programs]."""
    extent = Extent(length, length)
    reach = _heads(windows, jnp.ones_like(windows), None, extent).reach[:, None]
    rows, span = (block.queries, _key_span) if over == "queries" else (block.keys, _query_span)
    first = jnp.arange(pl.cdiv(length, rows), dtype=jnp.int32) * rows
    tiles = span(first, block, reach, 0, extent)
    return tiles.start + 0 * reach, tiles.stop + 0 * reach


def _sizes(q, v):
    return device_block_sizes(q.dtype, q.shape[-1], v.shape[-1])


def device_block_sizes(dtype: jax.typing.DTypeLike, key_dim: int, value_dim: int) -> BlockSizes:
    """What the kernels use on the first local GPU."""
    return block_sizes(compute_capability(), dtype, key_dim, value_dim)


def gpu_chip() -> str:
    """The GPU's name, as its table of block sizes has it; "gpu" where there is none."""
    capability = compute_capability()
    return "gpu" if capability is None else f"sm_{capability}"


# -- what a program needs to know of its head ------------------------------------------------------


class _Head(NamedTuple):
    """Scalars of one head, or arrays [H] of them."""

    reach: Array  # int32: largest distance at which a key counts
    turns: Array  # int32: half a turn per window, in turns / 2^32
    turns_rest: Array  # float32: what the integer leaves, in turns
    sharpness: Array  # float32: 1 / width
    gap: Array | None  # int32: the call's, the same for all heads

    @classmethod
    def of(cls, refs: "_Head") -> "_Head":
        return jax.tree.map(lambda ref: ref[0], refs)


def _heads(window, width, gap, extent):
    window, width = window.astype(jnp.float32), width.astype(jnp.float32)
    farthest = extent.before(gap) + extent.queries - 1
    reach = jnp.minimum(jnp.ceil(window) - 1, farthest).astype(jnp.int32)
    turns = jnp.minimum(0.5 / window, 0.5 - 2.0**-20) * _TURN
    whole = jnp.round(turns)
    return _Head(
        jnp.clip(reach, 0, farthest),  # whatever the window is, NaN included
        whole.astype(jnp.int32),
        (turns - whole) / _TURN,
        1 / width,
        None if gap is None else jnp.full(window.shape, gap, jnp.int32),
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
        ref.at[pl.ds(start, rows)],
        mask=(mask := _inside(shape, start, length, columns)),
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

    In this form the constant is exact: 1 - x has no rounding error for any x from 1 to 2^24.
    """
    root = _positive_part(similarity * head.sharpness + (1 - head.sharpness))
    if distance is not None:
        root = jnp.where((distance >= 0) & (distance <= head.reach), root, 0)
    if segments is not None:
        rows, columns = segments
        root = jnp.where(rows[:, None] == columns[None, :], root, 0)
    return root


def _bits(x):
    return lax.bitcast_convert_type(x, jnp.int32)


def _positive_part(x):
    """max(x, 0) that keeps NaN, as Triton's maximum of floats does not.

    Read as integers, positive floats are in the same order and negative ones below zero; above all
    of them is the one NaN, without a sign, that a GPU's arithmetic gives.
    """
    return lax.bitcast_convert_type(jnp.maximum(_bits(x), 0), jnp.float32)


def _unless_all_rejected(root, add, carry):
    # As integers too, so that a NaN is not taken for a rejected key.
    return lax.cond(jnp.max(_bits(root)) <= 0, lambda carry: carry, add, carry)


def _query_segments(ref, start, rows, extent):
    """Documents of queries; those of padding are equal to none of a key."""
    mask = _inside((rows,), start, extent.queries, None)
    segments = plgpu.load(
        ref.at[pl.ds(extent.query_segments + start, rows)],
        mask=mask,
        other=None if mask is None else 0,
    )
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


def _key_span(first_query, block, reach, before, extent):
    """Blocks of keys that hold a key which some query of the block reads; stop < start if none."""
    first = before + first_query
    last = first + block.queries - 1
    return _Span(
        lax.div(jnp.maximum(first - reach, 0), block.keys),
        lax.div(jnp.minimum(last, extent.keys - 1), block.keys) + 1,
        lax.div(jnp.maximum(last - reach, 0) + block.keys - 1, block.keys),
        lax.div(first + 1, block.keys),
    )


def _query_span(first_key, block, reach, before, extent):
    """Blocks of queries that hold a query which reads some key of the block."""
    first = first_key - before
    last = first + block.keys - 1
    # Only keys before the first query can have none at all; elsewhere clipping costs registers.
    some_before = extent.apart or extent.keys > extent.queries
    at_least_0 = partial(jnp.maximum, 0) if some_before else lambda token: token
    return _Span(
        lax.div(at_least_0(first), block.queries),
        lax.div(
            at_least_0(jnp.minimum(last + reach, extent.queries - 1) + block.queries), block.queries
        ),
        lax.div(at_least_0(last) + block.queries - 1, block.queries),
        lax.div(at_least_0(jnp.minimum(first + reach + 1, extent.queries)), block.queries),
    )


def _screening_forward(
    head_refs, q_ref, k_ref, v_ref, segments_ref, h_ref, *, block, extent, key_dim
):
    head = _Head.of(head_refs)
    before = extent.before(head.gap)
    start = (pl.num_programs(1) - 1 - pl.program_id(1)) * block.queries
    q_ck = _load(q_ref, start, block.queries, extent.queries, key_dim)
    row, column = lax.iota(jnp.int32, block.queries), lax.iota(jnp.int32, block.keys)
    row_angle, (cos_l, sin_l) = _cos_sin(row, head), _cos_sin(column, head)
    if segments_ref is not None:
        segments_c = _query_segments(segments_ref, start, block.queries, extent)

    def tile(index, h_cv, edge):
        key_start = index * block.keys
        distance = before + start - key_start
        k_lk = _load(k_ref, key_start, block.keys, extent.keys, key_dim)
        segments = None
        if segments_ref is not None:
            segments = segments_c, _load(segments_ref, key_start, block.keys, extent.keys)
        root_cl = _trim_root(
            _dot(q_ck, k_lk, transpose_b=True),
            head,
            (distance + row)[:, None] - column[None, :] if edge else None,
            segments,
        )

        def add(h_cv):
            v_lv = _load(v_ref, key_start, block.keys, extent.keys)
            cos_c, sin_c = _rotate(*row_angle, *_cos_sin(distance, head))
            mask_cl = 0.5 + (0.5 * cos_c)[:, None] * cos_l + (0.5 * sin_c)[:, None] * sin_l
            return h_cv + _dot((root_cl * root_cl * mask_cl).astype(v_lv.dtype), v_lv)

        return _unless_all_rejected(root_cl, add, h_cv)

    h_cv = jnp.zeros((block.queries, v_ref.shape[1]), jnp.float32)
    span = _key_span(start, block, head.reach, before, extent)
    _store(h_ref, _visit(tile, span, h_cv), start, extent.queries)


def _screening_backward_queries(
    head_refs,
    q_ref,
    k_ref,
    v_ref,
    dh_ref,
    segments_ref,
    dq_ref,
    dwindow_ref,
    dwidth_ref,
    *,
    block,
    extent,
    key_dim,
):
    head = _Head.of(head_refs)
    before = extent.before(head.gap)
    program = pl.num_programs(1) - 1 - pl.program_id(1)
    start = program * block.queries
    q_ck = _load(q_ref, start, block.queries, extent.queries, key_dim)
    dh_cv = _load(dh_ref, start, block.queries, extent.queries)
    row, column = lax.iota(jnp.int32, block.queries), lax.iota(jnp.int32, block.keys)
    row_angle, (cos_l, sin_l) = _cos_sin(row, head), _cos_sin(column, head)
    column_float = column.astype(jnp.float32)
    if segments_ref is not None:
        segments_c = _query_segments(segments_ref, start, block.queries, extent)

    def tile(index, carry, edge):
        key_start = index * block.keys
        distance = before + start - key_start
        k_lk = _load(k_ref, key_start, block.keys, extent.keys, key_dim)
        segments = None
        if segments_ref is not None:
            segments = segments_c, _load(segments_ref, key_start, block.keys, extent.keys)
        root_cl = _trim_root(
            _dot(q_ck, k_lk, transpose_b=True),
            head,
            (distance + row)[:, None] - column[None, :] if edge else None,
            segments,
        )

        def add(carry):
            dq_ck, dwindow_c, dwidth_c = carry
            v_lv = _load(v_ref, key_start, block.keys, extent.keys)
            cos_c, sin_c = _rotate(*row_angle, *_cos_sin(distance, head))
            mask_cl = 0.5 + (0.5 * cos_c)[:, None] * cos_l + (0.5 * sin_c)[:, None] * sin_l
            slope_cl = sin_c[:, None] * cos_l - cos_c[:, None] * sin_l
            droot_cl = _dot(dh_cv, v_lv, transpose_b=True) * root_cl
            # Whole numbers, subtracted as floats: a conversion for each pair would cost more.
            distance_cl = (distance + row).astype(jnp.float32)[:, None] - column_float
            dwindow_cl = droot_cl * root_cl * slope_cl * distance_cl
            dsimilarity_cl = droot_cl * mask_cl
            return (
                dq_ck + _dot(dsimilarity_cl.astype(k_lk.dtype), k_lk),
                dwindow_c + jnp.sum(dwindow_cl, axis=1),
                dwidth_c + jnp.sum(dsimilarity_cl * (1 - root_cl), axis=1),
            )

        return _unless_all_rejected(root_cl, add, carry)

    zeros = jnp.zeros(block.queries, jnp.float32)
    carry = jnp.zeros(q_ck.shape, jnp.float32), zeros, zeros
    span = _key_span(start, block, head.reach, before, extent)
    dq_ck, dwindow_c, dwidth_c = _visit(tile, span, carry)
    _store(dq_ref, dq_ck * (2 * head.sharpness), start, extent.queries, key_dim)
    dwindow_ref[program] = jnp.sum(dwindow_c)
    dwidth_ref[program] = jnp.sum(dwidth_c)


def _screening_backward_keys(
    head_refs, q_ref, k_ref, v_ref, dh_ref, segments_ref, dk_ref, dv_ref, *, block, extent, key_dim
):
    head = _Head.of(head_refs)
    before = extent.before(head.gap)
    start = pl.program_id(1) * block.keys
    k_lk = _load(k_ref, start, block.keys, extent.keys, key_dim)
    v_lv = _load(v_ref, start, block.keys, extent.keys)
    row, column = lax.iota(jnp.int32, block.keys), lax.iota(jnp.int32, block.queries)
    row_angle, (cos_c, sin_c) = _cos_sin(-row, head), _cos_sin(column, head)
    if segments_ref is not None:
        segments_l = _load(segments_ref, start, block.keys, extent.keys)

    def tile(index, carry, edge):
        query_start = index * block.queries
        distance = before + query_start - start
        q_ck = _load(q_ref, query_start, block.queries, extent.queries, key_dim)
        segments = None
        if segments_ref is not None:
            segments_c = _query_segments(segments_ref, query_start, block.queries, extent)
            segments = segments_l, segments_c
        root_lc = _trim_root(
            _dot(k_lk, q_ck, transpose_b=True),
            head,
            (distance - row)[:, None] + column[None, :] if edge else None,
            segments,
        )

        def add(carry):
            dk_lk, dv_lv = carry
            dh_cv = _load(dh_ref, query_start, block.queries, extent.queries)
            cos_l, sin_l = _rotate(*row_angle, *_cos_sin(distance, head))
            mask_lc = 0.5 + (0.5 * cos_l)[:, None] * cos_c - (0.5 * sin_l)[:, None] * sin_c
            masked_lc = root_lc * mask_lc
            dsimilarity_lc = _dot(v_lv, dh_cv, transpose_b=True) * masked_lc
            return (
                dk_lk + _dot(dsimilarity_lc.astype(q_ck.dtype), q_ck),
                dv_lv + _dot((root_lc * masked_lc).astype(dh_cv.dtype), dh_cv),
            )

        return _unless_all_rejected(root_lc, add, carry)

    carry = jnp.zeros(k_lk.shape, jnp.float32), jnp.zeros(v_lv.shape, jnp.float32)
    dk_lk, dv_lv = _visit(tile, _query_span(start, block, head.reach, before, extent), carry)
    _store(dk_ref, dk_lk * (2 * head.sharpness), start, extent.keys, key_dim)
    _store(dv_ref, dv_lv, start, extent.keys)


# -- all programs ----------------------------------------------------------------------------------


def _run(kernel, block, rows, arrays, window, width, segment_ids, gap, results):
    """`kernel` for every head, block of `rows` tokens of the first result, and sequence; the heads
    of a block together, since their keys share cache lines."""
    batch, _, num_heads, key_dim = arrays[0].shape
    q, k, *_ = arrays
    extent = extent_of(q, k, gap)

    def padded(length):
        return max(pl.cdiv(length, n) * n for n in (block.queries, block.keys))

    def spec(x):
        if x.ndim == 1:
            return pl.BlockSpec((1,), lambda head, program, row: (head,))
        if x.ndim == 2:
            return pl.BlockSpec((None, padded(x.shape[1])), lambda head, program, row: (row, 0))
        if x.ndim == 3:
            shape = (None, None, x.shape[2])
            return pl.BlockSpec(shape, lambda head, program, row: (row, head, 0))
        shape = (None, padded(x.shape[1]), None, max(x.shape[3], _MIN_DOT))
        return pl.BlockSpec(shape, lambda head, program, row: (row, 0, head, 0))

    operands = (_heads(window, width, gap, extent), *arrays, segment_ids)
    return kernel_call(
        partial(kernel, block=block, extent=extent, key_dim=key_dim),
        grid=(num_heads, pl.cdiv(results[0].shape[1], rows), batch),
        in_specs=jax.tree.map(spec, operands),
        out_specs=[spec(x) for x in results],
        out_shape=results,
        compiler_params=plgpu.CompilerParams(num_warps=block.warps, num_stages=block.stages),
        name=kernel.__name__.lstrip("_") + "_apart" * extent.apart,
    )(*operands)


@jax.custom_vjp
def _screening(q, k, v, window, width, segment_ids, gap):
    block = _sizes(q, v).forward
    result = jax.ShapeDtypeStruct((*q.shape[:3], v.shape[3]), v.dtype)
    operands = (q, k, v), window, width, segment_ids, gap
    (h,) = _run(_screening_forward, block, block.queries, *operands, [result])
    return h


def _screening_fwd(*args):
    return _screening(*args), args


def _screening_bwd(residuals, dh):
    q, k, v, window, width, segment_ids, gap = residuals
    sizes = _sizes(q, v)
    operands = (q, k, v, dh), window, width, segment_ids, gap
    dq, dk, dv = (jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (q, k, v))

    block = sizes.queries
    batch, length, num_heads, _ = q.shape
    shape = (batch, num_heads, pl.cdiv(length, block.queries))
    parts = jax.ShapeDtypeStruct(shape, jnp.float32)
    dq, dwindow, dwidth = _run(
        _screening_backward_queries, block, block.queries, *operands, [dq, parts, parts]
    )
    block = sizes.keys
    dk, dv = _run(_screening_backward_keys, block, block.keys, *operands, [dk, dv])

    # dm/dw = sin(pi d / w) pi d / (2 w^2); the kernels sum without what is constant in a head. One
    # 1 / w at a time, since 1 / w^2 may be too small for a float.
    half_turn = 0.5 / window.astype(jnp.float32)
    dwindow = half_turn * (half_turn * (2 * jnp.pi * jnp.sum(dwindow, (0, 2))))
    dwidth = jnp.sum(dwidth, (0, 2)) * (2 / width.astype(jnp.float32))
    return dq, dk, dv, dwindow.astype(window.dtype), dwidth.astype(width.dtype), None, None


_screening.defvjp(_screening_fwd, _screening_bwd)
