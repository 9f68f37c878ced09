"""The three TPU kernels of screening: the forward, dq with dwindow and dwidth, and dk with dv.

See `tpu_tiles` for the mathematics of a tile. With g and its factors Q and K from there, and the
cotangent dh, a tile's gradients are

    dg_ij = 2 max(g_ij, 0) (dh_i . v_j),   dQ_i = sum_j dg_ij K_j,   dK_j = sum_i dg_ij Q_i,

and dv_j = sum_i max(g_ij, 0)^2 dh_i. What precedes the factors is undone once per block of rows.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.common import dispatch
from pallas_kernels.screening import tpu_tiles as tiles
from pallas_kernels.screening.tpu_tiles import LANES, SUBLANES, Plan


def forward(plan: Plan, reach, numbers, segments, q, k, v):
    """h [B,H,V,T], from time-minor arrays."""
    scratch = [
        pltpu.VMEM((plan.rows, plan.columns), plan.dtype),
        pltpu.VMEM((plan.value_dim, plan.rows), jnp.float32),
    ]
    return _call(
        "forward", plan, _forward_kernel, [(plan.value_dim, v.dtype)], False, scratch,
        reach, numbers, segments, [q], [k, v],
    )  # fmt: skip


def backward_queries(plan: Plan, reach, numbers, segments, q, k, v, dh):
    """dq [B,H,K,T], and [B,H,8,LANES] of which row 0 sums to -window times dwindow,
    row 1 to -width^2 times dwidth."""
    tile = (plan.rows, plan.columns)
    scratch = [
        pltpu.SMEM((1,), jnp.int32),
        pltpu.VMEM((plan.rows, plan.value_dim), plan.dtype),
        pltpu.VMEM(tile, plan.dtype),
        pltpu.VMEM(tile, plan.dtype),
        pltpu.VMEM((2 * plan.gradient_rows, plan.columns), plan.dtype),
        pltpu.VMEM((2 * plan.gradient_rows, plan.rows), jnp.float32),
    ]
    return _call(
        "backward_queries", plan, _backward_queries_kernel, [(plan.key_dim, q.dtype)], True,
        scratch, reach, numbers, segments, [q, dh], [k, v],
    )  # fmt: skip


def backward_keys(plan: Plan, reach, numbers, segments, q, k, v, dh):
    """dk [B,H,K,T] and dv [B,H,V,T]."""
    tile = (plan.rows, plan.columns)
    scratch = [
        pltpu.SMEM((1,), jnp.int32),
        pltpu.VMEM((plan.rows, plan.value_dim), plan.dtype),
        pltpu.VMEM(tile, plan.dtype),
        pltpu.VMEM(tile, plan.dtype),
        pltpu.VMEM(tile, plan.dtype),
        pltpu.VMEM((plan.gradient_rows, plan.rows), jnp.float32),
        pltpu.VMEM((plan.value_dim, plan.rows), jnp.float32),
    ]
    outputs = [(plan.key_dim, k.dtype), (plan.value_dim, v.dtype)]
    return _call(
        "backward_keys", plan, _backward_keys_kernel, outputs, False, scratch,
        reach, numbers, segments, [k, v], [q, dh],
    )  # fmt: skip


# -- what surrounds a kernel -----------------------------------------------------------------------


def _call(name, plan, kernel, outputs, with_sums, scratch, reach, numbers, segments, rows, columns):
    """Runs a kernel over (batch, head, block of rows).

    Args:
        outputs: features and dtype of each [B,H,features,T] output.
        with_sums: whether a [B,H,8,LANES] output follows, one block per head.
        scratch: what the kernel keeps beyond the operands of a tile.
        rows: [B,H,features,T] of the side that stays; columns: of the side that is streamed.
    """

    def block(features):
        return pl.BlockSpec((None, None, features, plan.rows), lambda b, h, n, *_: (b, h, 0, n))

    streamed = pl.BlockSpec(memory_space=pltpu.HBM)
    out_specs = [block(features) for features, _ in outputs]
    out_shape = [
        jax.ShapeDtypeStruct((plan.batch, plan.heads, features, plan.length), dtype)
        for features, dtype in outputs
    ]
    if with_sums:
        sums = (SUBLANES, LANES)
        out_specs.append(pl.BlockSpec((None, None, *sums), lambda b, h, n, *_: (b, h, 0, 0)))
        out_shape.append(jax.ShapeDtypeStruct((plan.batch, plan.heads, *sums), jnp.float32))
    inputs = [*rows, *columns]
    in_specs = [block(x.shape[2]) for x in rows] + [streamed] * len(columns)
    shared = [
        pltpu.VMEM((plan.rows, plan.contraction), plan.dtype),
        pltpu.VMEM((plan.contraction, plan.columns), plan.dtype),
        pltpu.VMEM((3, SUBLANES, plan.rows), jnp.float32),  # angles
        *[pltpu.VMEM((2, x.shape[2], plan.columns), x.dtype) for x in columns],
        pltpu.SemaphoreType.DMA((2, 3)),
        pltpu.SMEM((1,), jnp.int32),
    ]
    if plan.packed:
        inputs += [segments, segments]
        in_specs += [
            pl.BlockSpec((None, 1, plan.rows), lambda b, h, n, *_: (b, 0, n)),
            streamed,
        ]
        shared += [
            pltpu.VMEM((plan.rows, LANES), jnp.int32),
            pltpu.VMEM((2, 1, plan.columns), jnp.int32),
        ]
    return pl.pallas_call(
        partial(_body, plan, kernel, len(rows), len(inputs), len(out_specs), len(shared)),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(plan.batch, plan.heads, plan.length // plan.rows),
            in_specs=in_specs,
            out_specs=out_specs,
            scratch_shapes=shared + scratch,
        ),
        out_shape=out_shape,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary")
        ),
        interpret=dispatch.interpretation(),
        name=f"screening_{name}",
    )(reach, numbers, *inputs)


def _body(plan, kernel, num_rows, num_inputs, num_outputs, num_shared, *refs):
    """Names the references, keeps the left operand and starts the stream."""
    reach_ref, numbers_ref, *refs = refs
    inputs, refs = refs[:num_inputs], refs[num_inputs:]
    outputs, shared, scratch = (
        refs[:num_outputs],
        refs[num_outputs : num_outputs + num_shared],
        refs[num_outputs + num_shared :],
    )
    rows, columns = inputs[:num_rows], inputs[num_rows : num_rows + 2]
    left_ref, right_ref, turn_ref, *buffers, semaphores, slot_ref = shared[:7]
    row_segments_ref = None
    batch, index, step = (pl.program_id(axis) for axis in range(3))
    head = tiles.read_head(reach_ref, numbers_ref, index, plan.heads)
    sources = [x.at[batch, index] for x in columns]
    if plan.packed:
        row_segments_ref, segment_buffer = shared[7:]
        tiles.keep_row_segments(row_segments_ref, inputs[-2])
        sources.append(inputs[-1].at[batch])
        buffers.append(segment_buffer)
    tiles.keep_left(left_ref, turn_ref, rows[0], head, plan)

    def copies(block, slot):
        where = pl.ds(pl.multiple_of(block * plan.columns, plan.columns), plan.columns)
        return [
            pltpu.make_async_copy(source.at[:, where], buffer.at[slot], semaphores.at[slot, n])
            for n, (source, buffer) in enumerate(zip(sources, buffers, strict=True))
        ]

    def tile_of(block, slot):
        distance = step * plan.rows - block * plan.columns
        if not plan.rows_are_queries:
            distance = -distance
        segments_ref = buffers[2].at[slot] if plan.packed else None
        return tiles.Tile(distance, head.reach, row_segments_ref, segments_ref)

    def right(block, slot, extra=None):
        """Writes the right operand; extra(columns, factor, turn) may write more."""
        start = block * plan.columns - step * plan.rows
        size = tiles.factor_tokens(plan.columns)
        for first in range(0, plan.columns, size):
            where = slice(first, first + size)
            turned = tiles.turn(start + first, size, head)
            x_kt = buffers[0][slot, :, where]
            if plan.rows_are_queries:
                factor = tiles.key_factor(x_kt, turned)
            else:
                factor = tiles.query_factor(x_kt, turned, head)
            right_ref[:, where] = tiles.operand(factor, plan, left=False)
            if extra is not None:
                extra(where, factor, turned)

    def run(visit):
        def body(block, slot):
            visit(tile_of(block, slot), partial(right, block, slot), buffers[1].at[slot])

        tiles.stream(plan, step, head.reach, copies, slot_ref, body)

    kernel(plan, head, step, run, left_ref, right_ref, turn_ref, rows, outputs, *scratch)


# -- the kernels -----------------------------------------------------------------------------------


def _forward_kernel(
    plan,
    head,
    step,
    run,
    left_ref,
    right_ref,
    turn_ref,
    rows,
    outputs,
    relevance_ref,
    total_ref,
):
    (h_ref,) = outputs
    total_ref[...] = jnp.zeros_like(total_ref)

    def visit(tile, write_right, v_ref):
        write_right()

        def keep(rows, root):
            relevance = (root * root).astype(plan.dtype)
            relevance_ref[rows] = relevance
            return relevance

        @pl.when(tiles.judge(tile, left_ref, right_ref, plan, keep))
        def _():
            v = v_ref[...].astype(plan.dtype)
            total_ref[...] += tiles.dot(v, relevance_ref[...], (1, 1), plan)

    run(visit)
    h_ref[...] = total_ref[...].astype(h_ref.dtype)


def _strips(plan):
    return [pl.ds(first, plan.strip) for first in range(0, plan.rows, plan.strip)]


def _backward_queries_kernel(
    plan, head, step, run, left_ref, right_ref, turn_ref, rows, outputs,
    flag_ref, dh_ref, root_ref, dg_ref, keys_ref, total_ref,
):  # fmt: skip
    q_ref, dh_time_minor_ref = rows
    dq_ref, sums_ref = outputs
    tiles.keep_transposed(dh_ref, dh_time_minor_ref, plan)
    total_ref[...] = jnp.zeros_like(total_ref)

    @pl.when(step == 0)
    def _():
        sums_ref[...] = jnp.zeros_like(sums_ref)

    def keep(rows, root):
        root_ref[rows] = root.astype(plan.dtype)
        return root_ref[rows]

    def keep_keys(where, factor, turned):
        """Keys as gradients need them: the factor, and the factor times the angle."""
        angle = jnp.concatenate([turned.angle] * (plan.factor_rows // SUBLANES))
        parts = [factor, factor * angle]
        if not plan.exact:
            parts = [part for x in parts for part in tiles.split(x)]
        keys_ref[:, where] = jnp.concatenate(parts).astype(plan.dtype)

    def visit(tile, write_right, v_ref):
        write_right(keep_keys)
        accepted = tiles.judge(tile, left_ref, right_ref, plan, keep)

        def gradient_of_g():
            v = v_ref[...].astype(plan.dtype)
            for rows in _strips(plan):
                half_dg = root_ref[rows].astype(jnp.float32) * tiles.dot(
                    dh_ref[rows], v, (1, 0), plan
                )
                dg_ref[rows] = half_dg.astype(plan.dtype)

        def gradient_of_factor():
            total_ref[...] += tiles.dot(keys_ref[...], dg_ref[...], (1, 1), plan)

        tiles.in_stages(accepted, flag_ref, plan, gradient_of_g, gradient_of_factor)

    run(visit)

    size = tiles.factor_tokens(plan.rows)

    def finish(first):
        where = pl.ds(first, size)
        turned = tiles.kept_turn(turn_ref, where)
        q_kt = q_ref[:, where].astype(jnp.float32)
        gradient, by_angle = jnp.split(2 * total_ref[:, where], 2)
        gradient, by_angle = (_joined(x, plan) for x in (gradient, by_angle))
        dq, dconstant = _through_factor(gradient, turned, plan)
        dq_ref[:, where] = (dq * head.inverse_width).astype(dq_ref.dtype)
        # The angle of a pair is the query's less the key's.
        slope = tiles.factor(
            q_kt * head.inverse_width, 1 - head.inverse_width, -turned.sine, turned.cosine
        )
        angle = jnp.concatenate([turned.angle] * (plan.factor_rows // SUBLANES))
        dwindow = jnp.sum(slope * (gradient * angle - by_angle), axis=0, keepdims=True)
        dwidth = jnp.sum(q_kt * dq, axis=0, keepdims=True) - dconstant
        row = lax.broadcasted_iota(jnp.int32, (SUBLANES, size), 0)
        sums_ref[...] += jnp.where(row == 0, dwindow, jnp.where(row == 1, dwidth, 0))

    tiles.for_factor_tokens(plan.rows, finish)


def _backward_keys_kernel(
    plan, head, step, run, left_ref, right_ref, turn_ref, rows, outputs,
    flag_ref, v_ref, root_ref, relevance_ref, dg_ref, dfactor_ref, dv_total_ref,
):  # fmt: skip
    dk_ref, dv_ref = outputs
    tiles.keep_transposed(v_ref, rows[1], plan)
    dfactor_ref[...] = jnp.zeros_like(dfactor_ref)
    dv_total_ref[...] = jnp.zeros_like(dv_total_ref)

    def keep(rows, root):
        root_ref[rows] = root.astype(plan.dtype)
        relevance_ref[rows] = (root * root).astype(plan.dtype)
        return root_ref[rows]

    def visit(tile, write_right, dh_ref):
        write_right()
        accepted = tiles.judge(tile, left_ref, right_ref, plan, keep)

        def gradient_of_g():
            dh = dh_ref[...].astype(plan.dtype)
            for rows in _strips(plan):
                half_dg = root_ref[rows].astype(jnp.float32) * tiles.dot(
                    v_ref[rows], dh, (1, 0), plan
                )
                dg_ref[rows] = half_dg.astype(plan.dtype)

        def gradient_of_factor():
            queries = right_ref[: plan.gradient_rows]
            dfactor_ref[...] += tiles.dot(queries, dg_ref[...], (1, 1), plan)

        def gradient_of_values():
            dh = dh_ref[...].astype(plan.dtype)
            dv_total_ref[...] += tiles.dot(dh, relevance_ref[...], (1, 1), plan)

        tiles.in_stages(
            accepted, flag_ref, plan, gradient_of_g, gradient_of_factor, gradient_of_values
        )

    run(visit)

    size = tiles.factor_tokens(plan.rows)

    def finish(first):
        where = pl.ds(first, size)
        gradient = _joined(2 * dfactor_ref[:, where], plan)
        dk, _ = _through_factor(gradient, tiles.kept_turn(turn_ref, where), plan)
        dk_ref[:, where] = dk.astype(dk_ref.dtype)

    tiles.for_factor_tokens(plan.rows, finish)
    dv_ref[...] = dv_total_ref[...].astype(dv_ref.dtype)


def _joined(gradient, plan):
    """Adds what the high and the low parts of a split factor gave."""
    return gradient if plan.exact else sum(jnp.split(gradient, 2))


def _through_factor(gradient, turned, plan):
    """From the gradient of a factor to that of its vector [K, tokens] and constant [1, tokens]."""
    by_cosine, by_sine, by_constants = jnp.split(gradient, [plan.key_dim, 2 * plan.key_dim])
    times = plan.key_dim // SUBLANES
    cosine, sine = (jnp.concatenate([x] * times) for x in (turned.cosine, turned.sine))
    vector = cosine * by_cosine + sine * by_sine
    constant = turned.cosine[:1] * by_constants[:1] + turned.sine[:1] * by_constants[1:2]
    return vector, constant
