"""Screening on TPUs: the public op, its gradient, and what XLA does around the kernels."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Float, Int

from pallas_kernels.screening import tpu_kernels, tpu_tiles
from pallas_kernels.screening.block_sizes import TpuBlocks, tpu_blocks
from pallas_kernels.screening.extent import Extent, extent_of

KEY_DIMS = (8, 16, 32, 64, 128)
VALUE_DIMS = (32, 64, 128)


def screening_pallas_tpu(
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
    """`pallas_kernels.screening` as Pallas kernels; see there for the mathematics and arguments.

    Args:
        q, k: K in (8, 16, 32, 64, 128); float32 or bfloat16.
        v: V in (32, 64, 128).
        precision: None gives bf16 products with float32 sums for bf16 inputs, in which similarity,
            trim and mask keep 16 bits and the summands of h and of gradients 8. Float32 inputs, and
            "highest", take float32 products, each as six of bf16 parts.

    Cost: `count_tiles` says which tiles are visited: those that hold a pair within the head's
        window. One inside it without any accepted pair costs one product, K -> 2 (K + 1) long;
        others two, in the backward pass seven. Of one on the window's edge only the parts that
        hold a pair are worked on. Memory: a time-minor copy of the inputs if XLA has them
        otherwise, and the results; the backward keeps only the inputs.

    Raises:
        NotImplementedError: for other dims or dtypes, or if the chip has too few registers or too
            little memory for them.

    Source: arXiv:2604.01178 v3, eq. 9-12.
    """
    exact = _check(q, k, v, precision)
    blocks = tpu_blocks(q.shape[1], q.shape[3], v.shape[3], exact)
    return _screening(q, k, v, window, width, segment_ids, gap, exact, blocks)


def _check(q, k, v, precision) -> bool:
    """Whether products are to be float32; raises for what the kernels do not support."""
    for name, x, dims in (("q and k", q, KEY_DIMS), ("v", v, VALUE_DIMS)):
        if x.shape[-1] not in dims:
            raise NotImplementedError(f"{name} must have a last dim in {dims}, got {x.shape[-1]}")
    dtypes = {jnp.dtype(x.dtype) for x in (q, k, v)}
    if not dtypes <= {jnp.dtype(jnp.float32), jnp.dtype(jnp.bfloat16)}:
        names = sorted(dtype.name for dtype in dtypes)
        raise NotImplementedError(f"q, k, v must be float32 or bfloat16, got {', '.join(names)}")
    given = precision if isinstance(precision, tuple | list) else (precision,)
    wants_highest = any(p in (lax.Precision.HIGHEST, "highest", "float32") for p in given)
    return wants_highest or jnp.dtype(jnp.float32) in dtypes


# -- the gradient ----------------------------------------------------------------------------------


@partial(jax.custom_vjp, nondiff_argnums=(7, 8))
def _screening(q, k, v, window, width, segment_ids, gap, exact: bool, blocks: TpuBlocks):
    extent = extent_of(q, k, gap)
    inputs = _prepare(window, width, segment_ids, gap, [q], [k, v], extent, blocks)
    (h,) = _launch(tpu_kernels.forward, exact, blocks.forward, True, extent, *inputs)
    return _public(h, _Padding.of(extent, blocks).queries)


def _screening_fwd(q, k, v, window, width, segment_ids, gap, exact, blocks):
    inputs = (q, k, v, window, width, segment_ids, gap)
    return _screening(*inputs, exact, blocks), inputs


def _screening_bwd(exact, blocks, residuals, dh):
    q, k, v, window, width, segment_ids, gap = residuals
    extent, of_queries = extent_of(q, k, gap), [q, dh.astype(v.dtype)]
    inputs = _prepare(window, width, segment_ids, gap, of_queries, [k, v], extent, blocks)
    dq, sums = _launch(tpu_kernels.backward_queries, exact, blocks.queries, True, extent, *inputs)
    dk, dv = _launch(tpu_kernels.backward_keys, exact, blocks.keys, False, extent, *inputs)
    sums_h2 = jnp.sum(sums, axis=(0, 3))[:, :2]
    dwindow = (-sums_h2[:, 0] / window).astype(window.dtype)
    dwidth = (-sums_h2[:, 1] / width**2).astype(width.dtype)
    padding = _Padding.of(extent, blocks)
    dq, dk, dv = _public(dq, padding.queries), *(_public(x, padding.keys) for x in (dk, dv))
    return dq, dk, dv, dwindow, dwidth, None, None


_screening.defvjp(_screening_fwd, _screening_bwd)


# -- around the kernels ----------------------------------------------------------------------------


class _Padding(NamedTuple):
    """Tokens added before and after, so that blocks divide both sides and what is before the first
    query. None needs a mask: without values and cotangents it contributes nothing."""

    queries: tuple[int, int]
    keys: tuple[int, int]

    @classmethod
    def of(cls, extent: Extent, blocks: TpuBlocks) -> "_Padding":
        after = -extent.queries % blocks.multiple
        if extent.apart:
            return cls((0, after), (-extent.keys % blocks.multiple, 0))
        return cls((0, after), ((extent.queries - extent.keys) % blocks.multiple, after))


def _prepare(window, width, segment_ids, gap, of_queries, of_keys, extent, blocks):
    """What kernels take: scalars per head, documents of both sides [B,1,T], and time-minor arrays:
    q, k, v, dh."""
    (q, *dh), (k, v) = of_queries, of_keys
    padding, before = _Padding.of(extent, blocks), extent.before(gap)
    reach, numbers = tpu_tiles.head_scalars(
        window.astype(jnp.float32), width.astype(jnp.float32), before + extent.queries - 1
    )
    if extent.apart:
        # The kernels' keys start with the padding.
        reach = jnp.append(reach, (before + padding.keys[0]).astype(jnp.int32))
    segments = None
    if segment_ids is not None:
        segments = [
            jnp.pad(ids.astype(jnp.int32), [(0, 0), pad])[:, None]
            for ids, pad in (
                (segment_ids[:, extent.query_segments :], padding.queries),
                (segment_ids[:, : extent.keys], padding.keys),
            )
        ]

    def time_minor(x, pad):
        return jnp.pad(jnp.moveaxis(x, 1, -1), [(0, 0)] * 3 + [pad])

    sides = [padding.queries, padding.keys, padding.keys, padding.queries]
    return reach, numbers, segments, *map(time_minor, (q, k, v, *dh), sides)


def _public(x, padding):
    """[B,H,K,T] -> [B,T,H,K], without padding."""
    before, after = padding
    return jnp.moveaxis(x[..., before : x.shape[-1] - after], -1, 1)


def _launch(kernel, exact, sizes, rows_are_queries, extent, *inputs):
    """Runs a kernel; under vmap, more batch for arrays, and one run after the other for windows."""

    @custom_vmap
    def run(reach, numbers, segments, *arrays):
        batch, heads, key_dim, queries = arrays[0].shape
        plan = tpu_tiles.Plan(
            batch=batch,
            heads=heads,
            key_dim=key_dim,
            value_dim=arrays[2].shape[2],
            queries=queries,
            keys=arrays[1].shape[3],
            block=sizes,
            rows_are_queries=rows_are_queries,
            exact=exact,
            packed=segments is not None,
            apart=extent.apart,
        )
        return tuple(kernel(plan, reach, numbers, segments, *arrays))

    @run.def_vmap
    def batched(size, are_batched, reach, numbers, segments, *arrays):
        def whole(x, is_batched):
            return x if is_batched else jnp.broadcast_to(x, (size, *x.shape))

        tree = (reach, numbers, segments, *arrays)
        reach, numbers, *per_batch = jax.tree.map(whole, tree, tuple(are_batched))
        if are_batched[0] or are_batched[1]:
            out = lax.map(lambda x: run(*x), (reach, numbers, *per_batch))
        else:
            # Kernels have a batch axis already.
            merged = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), per_batch)
            out = run(tree[0], tree[1], *merged)
            out = tuple(x.reshape(size, -1, *x.shape[1:]) for x in out)
        return out, jax.tree.map(lambda _: True, out)

    return run(*inputs)
