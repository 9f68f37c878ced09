"""The three TPU kernels of screening: the forward, dq with dwindow and dwidth, and dk with dv.

See `tpu_tiles` for the mathematics of a tile. With g and its factors Q and K from there, and the
cotangent dh, a tile's gradients are

    dg_ij = 2 max(g_ij, 0) (dh_i . v_j),   dQ_i = sum_j dg_ij K_j,   dK_j = sum_i dg_ij Q_i,

and dv_j = sum_i max(g_ij, 0)^2 dh_i. What precedes the factors is undone once per block of rows.
"""

from functools import partial

import jax
import jax.numpy as jnp

from pallas_kernels.common.kernel_call import kernel_call
from pallas_kernels.common.pallas import pl, pltpu
from pallas_kernels.screening import tpu_tiles as tiles
from pallas_kernels.screening.tpu_tiles import LANES, PRODUCT_DTYPE, SUBLANES, Plan


def forward(plan: Plan, reach, numbers, segments, q, k, v):
    """h [B,H,V,T], from time-minor arrays."""
    scratch = [
        _tiles(plan, plan.parts, PRODUCT_DTYPE),
        pltpu.VMEM((plan.parts * plan.value_dim, plan.rows), jnp.float32),
    ]
    return _call(
        "forward", plan, _forward_kernel, [(plan.value_dim, v.dtype)], False, scratch,
        reach, numbers, segments, [q], [k, v],
    )  # fmt: skip


def backward_queries(plan: Plan, reach, numbers, segments, q, k, v, dh):
    """dq [B,H,K,T], and [B,H,8,LANES] of which row 0 sums to -window times dwindow,
    row 1 to -width^2 times dwidth."""
    gradient_rows = 2 * plan.factor_parts * plan.factor_rows
    scratch = [
        pltpu.SMEM((1,), jnp.int32),
        pltpu.VMEM((plan.rows, plan.value_contraction), PRODUCT_DTYPE),
        _tiles(plan, 1, plan.dtype),
        _tiles(plan, plan.parts, PRODUCT_DTYPE),
        pltpu.VMEM((gradient_rows, plan.columns), PRODUCT_DTYPE),
        pltpu.VMEM((gradient_rows, plan.rows), jnp.float32),
    ]
    return _call(
        "backward_queries", plan, _backward_queries_kernel, [(plan.key_dim, q.dtype)], True,
        scratch, reach, numbers, segments, [q, dh], [k, v],
    )  # fmt: skip


def backward_keys(plan: Plan, reach, numbers, segments, q, k, v, dh):
    """dk [B,H,K,T] and dv [B,H,V,T]."""
    scratch = [
        pltpu.SMEM((1,), jnp.int32),
        pltpu.VMEM((plan.rows, plan.value_contraction), PRODUCT_DTYPE),
        _tiles(plan, 1, plan.dtype),
        _tiles(plan, plan.parts, PRODUCT_DTYPE),
        _tiles(plan, plan.parts, PRODUCT_DTYPE),
        pltpu.VMEM((plan.factor_parts * plan.factor_rows, plan.rows), jnp.float32),
        pltpu.VMEM((plan.parts * plan.value_dim, plan.rows), jnp.float32),
    ]
    outputs = [(plan.key_dim, k.dtype), (plan.value_dim, v.dtype)]
    return _call(
        "backward_keys", plan, _backward_keys_kernel, outputs, False, scratch,
        reach, numbers, segments, [k, v], [q, dh],
    )  # fmt: skip


def _tiles(plan, parts, dtype):
    return pltpu.VMEM((parts, plan.rows, plan.columns), dtype)


# -- what surrounds a kernel -----------------------------------------------------------------------


def _call(name, plan, kernel, outputs, with_sums, scratch, reach, numbers, segments, rows, columns):
    """Runs a kernel over (batch, head, block of rows).

    Args:
        outputs: features and dtype of each [B,H,features,T] output.
        with_sums: whether a [B,H,8,LANES] output follows, one block per head.
        scratch: what the kernel keeps beyond the operands of a tile.
        segments: int32 [B,1,T] of queries and [B,1,S] of keys, or None.
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
        pltpu.VMEM((plan.rows, plan.contraction), PRODUCT_DTYPE),
        pltpu.VMEM((plan.contraction, LANES), jnp.float32),
        pltpu.VMEM((plan.contraction, plan.columns), PRODUCT_DTYPE),
        pltpu.VMEM((plan.value_contraction, plan.columns), PRODUCT_DTYPE),
        pltpu.VMEM((len(tiles.Head._fields), SUBLANES, LANES), jnp.float32),
        pltpu.VMEM((len(tiles.Turn._fields), SUBLANES, plan.rows), jnp.float32),
        *[pltpu.VMEM((2, x.shape[2], plan.columns), x.dtype) for x in columns],
        pltpu.SemaphoreType.DMA((2, 3)),
        pltpu.SMEM((1,), jnp.int32),
    ]
    if plan.packed:
        inputs += segments if plan.rows_are_queries else segments[::-1]
        in_specs += [
            pl.BlockSpec((None, 1, plan.rows), lambda b, h, n, *_: (b, 0, n)),
            streamed,
        ]
        shared += [
            pltpu.VMEM((plan.rows, LANES), jnp.int32),
            pltpu.VMEM((2, 1, plan.columns), jnp.int32),
        ]
    return kernel_call(
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
        name=f"screening_{name}_apart" if plan.apart else f"screening_{name}",
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
    left_ref, rows_ref, right_ref, values_ref, head_ref, turn_ref, *buffers = shared[:8]
    semaphores, slot_ref = shared[8:10]
    row_segments_ref = None
    batch, index, step = (pl.program_id(axis) for axis in range(3))
    reach, before = reach_ref[index], plan.before(reach_ref)
    tiles.keep_head(head_ref, numbers_ref, index, plan.heads)
    sources = [x.at[batch, index] for x in columns]
    if plan.packed:
        row_segments_ref, segment_buffer = shared[10:]
        tiles.keep_row_segments(row_segments_ref, inputs[-2])
        sources.append(inputs[-1].at[batch])
        buffers.append(segment_buffer)
    tiles.clear_empty(right_ref, plan)
    tiles.keep_left(left_ref, rows_ref, turn_ref, rows[0], head_ref, plan)

    def copies(block, slot):
        where = pl.ds(pl.multiple_of(block * plan.columns, plan.columns), plan.columns)
        return [
            pltpu.make_async_copy(source.at[:, where], buffer.at[slot], semaphores.at[slot, n])
            for n, (source, buffer) in enumerate(zip(sources, buffers, strict=True))
        ]

    def start_of(block):
        """Of columns, counted from the first row."""
        offset = -before if plan.rows_are_queries else before
        return block * plan.columns - step * plan.rows + offset

    def tile_of(block, slot):
        distance = -start_of(block) if plan.rows_are_queries else start_of(block)
        segments_ref = buffers[2].at[slot] if plan.packed else None
        return tiles.Tile(distance, reach, head_ref, row_segments_ref, segments_ref)

    def right(block, slot, extra=None):
        """Writes the right operands; extra(columns, first, rows, turn) may write more of them."""
        start = start_of(block)

        def write(where):
            head = tiles.read_head(head_ref)
            turned = tiles.turn((start + where.start).astype(jnp.float32), head)

            def x_of(features):
                return buffers[0][slot, features, where]

            def keep(first, rows):
                tiles.store_operand(right_ref, where, first, rows, plan, left=False)
                if extra is not None:
                    extra(where, first, rows, turned)

            tiles.for_factor(plan, x_of, not plan.rows_are_queries, turned, head, keep)
            values = buffers[1][slot, :, where].astype(jnp.float32)
            _store_right(values_ref, where, values, plan.parts)

        if plan.block.rolled:
            tiles.for_factor_tokens(plan.columns, write)
        else:
            for first in range(0, plan.columns, LANES):
                write(pl.Slice(first, LANES))

    def run(work, extra=None):
        def visit(block, slot):
            right(block, slot, extra)
            tile = tile_of(block, slot)
            tiles.for_parts(tile, plan, partial(work, tile))

        tiles.stream(plan, step, reach, before, copies, slot_ref, visit)

    operands = left_ref, right_ref, values_ref
    kernel(plan, step, run, *operands, head_ref, turn_ref, rows, outputs, *scratch)


def _store_right(ref, where, x, parts):
    ref[:, where] = tiles.operand(x, parts, left=False).astype(ref.dtype)


# -- the kernels -----------------------------------------------------------------------------------


def _forward_kernel(
    plan, step, run, left_ref, right_ref, values_ref, head_ref, turn_ref, rows, outputs,
    relevance_ref, total_ref,
):  # fmt: skip
    (h_ref,) = outputs
    total_ref[...] = jnp.zeros_like(total_ref)

    def work(tile, part):
        def keep(rows, root):
            relevance = root * root
            tiles.store_split(relevance_ref, (rows, part.columns), relevance)
            return relevance_ref[0, rows, part.columns]

        found = tiles.screen(tile, part, left_ref, right_ref, plan, keep)

        def add_values():
            tiles.accumulate(total_ref, values_ref, relevance_ref, part, plan, plan.parts)

        # The product of a small part takes less time than to find out whether it is needed.
        if part.masked:
            add_values()
        else:
            pl.when(tiles.any_accepted(found))(add_values)

    run(work)
    _finish_values(h_ref, total_ref, plan)


def _finish_values(out_ref, total_ref, plan):
    def finish(where):
        values = _joined(total_ref, 0, plan.value_dim, where, plan.parts)
        out_ref[:, where] = values.astype(out_ref.dtype)

    tiles.for_factor_tokens(plan.rows, finish)


def _backward_queries_kernel(
    plan, step, run, left_ref, right_ref, values_ref, head_ref, turn_ref, rows, outputs,
    flag_ref, dh_ref, root_ref, dg_ref, keys_ref, total_ref,
):  # fmt: skip
    q_ref, dh_time_minor_ref = rows
    dq_ref, sums_ref = outputs
    tiles.keep_left_values(dh_ref, dh_time_minor_ref, plan)
    total_ref[...] = jnp.zeros_like(total_ref)

    @pl.when(step == 0)
    def _():
        sums_ref[...] = jnp.zeros_like(sums_ref)

    def keep_keys(where, first, rows, turned):
        """Keys as gradients need them: the factor, and the factor times the angle."""
        by_angle = rows * tiles.repeated(turned.angle, rows.shape[0])
        for n, x in enumerate((rows, by_angle)):
            for m, piece in enumerate(tiles.split(x, plan.factor_parts)):
                to = pl.Slice((2 * m + n) * plan.factor_rows + first, rows.shape[0])
                keys_ref[to, where] = piece.astype(keys_ref.dtype)

    def work(tile, part):
        def keep(rows, root):
            root_ref[0, rows, part.columns] = root.astype(root_ref.dtype)
            return root_ref[0, rows, part.columns]

        found = tiles.screen(tile, part, left_ref, right_ref, plan, keep)

        def gradient_of_g():
            _keep_gradient_of_g(dg_ref, root_ref, dh_ref, values_ref, part, plan)

        def gradient_of_factor():
            tiles.accumulate(total_ref, keys_ref, dg_ref, part, plan, plan.factor_parts)

        tiles.in_stages(found, flag_ref, plan, gradient_of_g, gradient_of_factor)

    run(work, keep_keys)

    def finish(where):
        turned, head = tiles.kept_turn(turn_ref, where), tiles.read_head(head_ref)

        def gradient_of(first, size):
            """Of rows of the factor: the sum over keys, and that with each times its angle."""
            starts = first, plan.factor_rows + first
            return [2 * _joined(total_ref, x, size, where, plan.factor_parts) for x in starts]

        def along(slope, gradient, by_angle):
            """The angle of a pair is the query's less the key's."""
            angle = tiles.repeated(turned.angle, slope.shape[0])
            return jnp.sum(slope * (gradient * angle - by_angle), axis=0, keepdims=True)

        def vector(features, sums):
            size, (dwindow, dwidth) = features.size, sums
            inverse_width, cosine, sine = (
                tiles.repeated(x, size) for x in (head.inverse_width, turned.cosine, turned.sine)
            )
            q_kt = q_ref[features, where].astype(jnp.float32)
            of_cosine = gradient_of(features.start, size)
            of_sine = gradient_of(plan.key_dim + features.start, size)
            dq = cosine * of_cosine[0] + sine * of_sine[0]
            dq_ref[features, where] = (dq * inverse_width).astype(dq_ref.dtype)
            x = q_kt * inverse_width
            dwindow += along(-x * sine, *of_cosine) + along(x * cosine, *of_sine)
            return dwindow, dwidth + jnp.sum(q_kt * dq, axis=0, keepdims=True)

        zeros = jnp.zeros((1, LANES), jnp.float32)
        dwindow, dwidth = tiles.for_features(plan, vector, (zeros, zeros))
        of_constants = gradient_of(2 * plan.key_dim, SUBLANES)
        constant = 1 - head.inverse_width
        slope = tiles.in_two_rows(-constant * turned.sine, constant * turned.cosine, head)
        dwindow += along(slope, *of_constants)
        by_cosine, by_sine = of_constants[0][:1], of_constants[0][1:2]
        dwidth -= turned.cosine[:1] * by_cosine + turned.sine[:1] * by_sine
        sums_ref[...] += tiles.in_two_rows(dwindow, dwidth, head)

    tiles.for_factor_tokens(plan.rows, finish)


def _backward_keys_kernel(
    plan, step, run, left_ref, right_ref, values_ref, head_ref, turn_ref, rows, outputs,
    flag_ref, v_ref, root_ref, relevance_ref, dg_ref, dfactor_ref, dv_total_ref,
):  # fmt: skip
    dk_ref, dv_ref = outputs
    tiles.keep_left_values(v_ref, rows[1], plan)
    dfactor_ref[...] = jnp.zeros_like(dfactor_ref)
    dv_total_ref[...] = jnp.zeros_like(dv_total_ref)

    def work(tile, part):
        def keep(rows, root):
            root_ref[0, rows, part.columns] = root.astype(root_ref.dtype)
            tiles.store_split(relevance_ref, (rows, part.columns), root * root)
            return root_ref[0, rows, part.columns]

        found = tiles.screen(tile, part, left_ref, right_ref, plan, keep)

        def gradient_of_g():
            _keep_gradient_of_g(dg_ref, root_ref, v_ref, values_ref, part, plan)

        def gradient_of_factor():
            # The right operand starts with all parts of the queries.
            tiles.accumulate(dfactor_ref, right_ref, dg_ref, part, plan, plan.factor_parts)

        def gradient_of_values():
            tiles.accumulate(dv_total_ref, values_ref, relevance_ref, part, plan, plan.parts)

        tiles.in_stages(
            found, flag_ref, plan, gradient_of_g, gradient_of_factor, gradient_of_values
        )

    run(work)

    def finish(where):
        turned = tiles.kept_turn(turn_ref, where)

        def vector(features, _):
            starts = features.start, plan.key_dim + features.start
            by_cosine, by_sine = (
                2 * _joined(dfactor_ref, x, features.size, where, plan.factor_parts) for x in starts
            )
            cosine, sine = (tiles.repeated(x, features.size) for x in turned[1:])
            dk_ref[features, where] = (cosine * by_cosine + sine * by_sine).astype(dk_ref.dtype)

        tiles.for_features(plan, vector)

    tiles.for_factor_tokens(plan.rows, finish)
    _finish_values(dv_ref, dv_total_ref, plan)


def _keep_gradient_of_g(dg_ref, root_ref, left_ref, right_ref, part, plan):
    """Writes half of dg, from the operands of the product of dh and v."""

    def strip(rows, _):
        by_relevance = tiles.dot(left_ref[rows], right_ref[:, part.columns], (1, 0))
        root = root_ref[0, rows, part.columns].astype(jnp.float32)
        tiles.store_split(dg_ref, (rows, part.columns), root * by_relevance)

    tiles.for_strips(part, plan, strip)


def _joined(total_ref, first, size, where, parts):
    """Rows of a sum, of what each of the parts of its operand gave."""
    step = total_ref.shape[0] // parts
    starts = range(0, total_ref.shape[0], step)
    first_part, *others = (total_ref[pl.Slice(x + first, size), where] for x in starts)
    return sum(others, first_part)
