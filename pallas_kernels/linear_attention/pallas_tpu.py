"""The linear family on TPUs: the ops, their gradient, and what XLA does around the kernels."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from pallas_kernels.common.documents import Documents
from pallas_kernels.common.pallas import pl
from pallas_kernels.common.tpu import kernel_memory, states_too_large
from pallas_kernels.linear_attention import tpu_walk
from pallas_kernels.linear_attention.tokens import (
    Levels,
    TokenDecays,
    products_are_exact,
    solve_chunks,
    token_decays,
)
from pallas_kernels.linear_attention.tpu_chunks import CHUNK, INNER_SCALES, Plan

# Chunks of a step of the grid, the best first. The first is for more than a few states, so that
# those kept for the backward do not grow with the number of levels.
_SEGMENTS = (8, 4, 2, 1)
_FEW_STATES = 5


def walk(
    q: Float[Array, "B T G K"],
    k: Float[Array, "B T G K"],
    v: Float[Array, "B T H V"],
    g: Float[Array, "B T H"] | None,
    beta: Float[Array, "B T H"] | None,
    states: Float[Array, "B H J K V"],
    documents: Documents | None,
    levels: Levels | None,
    precision: lax.PrecisionLike,
) -> tuple[Float[Array, "B T H V"], Float[Array, "B H J K V"]]:
    """The results, and the states after the last chunk.

    Where q and k are bfloat16, so are the operands of all products, with float32 sums, decays and
    states; float32 q or k, and precision "highest", take float32 products, each as six of bf16
    parts. Chunks have 128 tokens. Without `beta` nothing is erased (SSD); padding is zero.

    With levels J states, and documents that start where chunks do; without, one state.

    Raises:
        NotImplementedError: for other dtypes than float32 and bfloat16, or states that do not fit
            into vector memory.
    """
    exact = products_are_exact(q, k, v, precision)
    length, value_dim, key_dim = v.shape[1], v.shape[3], q.shape[3]
    batch, _, groups, _ = q.shape
    plan = make_plan(
        batch, length, groups, v.shape[2], key_dim, value_dim, states.shape[2],
        delta=beta is not None, levels=levels is not None,
        packed=documents is not None and levels is None, exact=exact,
    )  # fmt: skip
    after = [(0, 0), (0, plan.chunks * CHUNK - length)]

    def tokens(x, features=None):
        """[B,T,H,...], zero after the end and in features added, with time last."""
        pad = after + [(0, 0)] * (x.ndim - 2)
        if features is not None:
            pad[-1] = (0, features - x.shape[-1])
        return jnp.moveaxis(jnp.pad(x, pad), 1, -1)

    q, k, v = (
        tokens(x.astype(plan.operand), features)
        for x, features in ((q, plan.key_dim), (k, plan.key_dim), (v, plan.value_dim))
    )
    g = jnp.zeros((len(v), length, plan.heads), jnp.float32) if g is None else g
    packed = documents if plan.packed else None
    if packed is not None:
        index, real = packed
        packed = Documents(*(jnp.pad(x, after, mode="edge") for x in (index, real)))
    decays = token_decays(jnp.pad(g, [*after, (0, 0)]), packed, CHUNK)
    solve = None
    if beta is not None:
        keys = k.reshape(*k.shape[:3], -1, CHUNK)
        beta = tokens(beta.astype(jnp.float32)).reshape(decays.sums.shape)
        solve = solve_chunks(jnp.moveaxis(keys, 2, -1), beta, decays, packed, exact)
        solve = jnp.moveaxis(solve, -1, 2).reshape(*v.shape[:2], CHUNK, -1).astype(plan.operand)
    scales = None if levels is None else tokens(levels.scales)
    rows = _rows(plan, decays, packed, scales)
    features = [(0, 0)] * 3 + [(0, plan.value_dim - value_dim), (0, plan.key_dim - key_dim)]
    states = jnp.pad(jnp.swapaxes(states.astype(jnp.float32), 3, 4), features)
    masks = [jnp.zeros((1, 1), jnp.int32)] * 2 if levels is None else levels.masks(plan.chunks)
    walked: Any = _walk(q, k, v, rows, solve, states, *masks, plan)
    y, states = walked
    y = jnp.moveaxis(y, -1, 1)[:, :length, :, :value_dim]
    return y, jnp.swapaxes(states[..., :value_dim, :key_dim], 3, 4)


def make_plan(
    batch: int, length: int, groups: int, heads: int, key_dim: int, value_dim: int, states: int, *,
    delta: bool, levels: bool, packed: bool, exact: bool,
) -> Plan:  # fmt: skip
    """How the kernels take a problem: with sizes rounded up, and heads and chunks in blocks."""
    tile = 8 if exact else 16  # sublanes of a register
    chunks = pl.cdiv(length, CHUNK)
    whole = 1 << (chunks - 1).bit_length()  # a segment of all chunks
    plan = Plan(
        batch=batch,
        groups=groups,
        heads=heads,
        key_dim=pl.cdiv(key_dim, tile) * tile,
        value_dim=pl.cdiv(value_dim, tile) * tile,
        chunks=chunks,
        states=states,
        block=1,
        segment=min(_SEGMENTS[-1], whole),
        delta=delta,
        levels=levels,
        packed=packed,
        exact=exact,
    )
    for segment in _SEGMENTS[states <= _FEW_STATES :]:
        segment = min(segment, whole)
        tried = plan._replace(segment=segment, chunks=pl.cdiv(chunks, segment) * segment)
        forward, backward = (_with_block(tried, name) for name in ("forward", "backward"))
        if forward is not None and backward is not None:
            return forward
    needed = tpu_walk.memory(plan, "backward")
    raise states_too_large(states, plan.key_dim, plan.value_dim, needed, kernel_memory())


def backward_plan(plan: Plan) -> Plan:
    """The plan of the backward, which holds the states before every chunk of a segment too."""
    found = _with_block(plan, "backward")
    assert found is not None, plan  # or make_plan would have refused
    return found


def _with_block(plan: Plan, kernel: str) -> Plan | None:
    """With as many heads together as are worth it and vector memory has room for; None if for not
    even one."""
    alike = plan.heads if plan.groups == plan.heads else plan.heads // plan.groups
    for block in range(2 if plan.delta else 4, 0, -1):
        tried = plan._replace(block=block)
        if alike % block == 0 and tpu_walk.memory(tried, kernel) <= kernel_memory():
            return tried
    return None


def _rows(plan: Plan, decays: TokenDecays, documents, scales) -> Float[Array, "B H R T"]:
    """Numbers for every token and head, in the order of `tpu_chunks`."""
    shape = decays.sums.shape
    parts = [x.reshape(*shape[:2], 1, -1) for x in decays]
    if documents is not None:
        index = documents.index.astype(jnp.float32)[:, None, None]
        parts.append(jnp.broadcast_to(index, parts[0].shape))
    rows = jnp.concatenate(parts, axis=2)

    def pad_to(x, count):
        return jnp.pad(x, [(0, 0), (0, 0), (0, count - x.shape[2]), (0, 0)])

    rows = pad_to(rows, INNER_SCALES)
    if scales is not None:
        rows = jnp.concatenate([rows, scales.astype(jnp.float32)], axis=2)
    return pad_to(rows, plan.rows)


# -- the gradient ----------------------------------------------------------------------------------


@partial(jax.custom_vjp, nondiff_argnums=(8,))
def _walk(q, k, v, rows, solve, states, reads, target, plan: Plan):
    y, last = tpu_walk.forward(plan, False, reads, target, q, k, v, rows, solve, states)
    return y, last


def _walk_fwd(q, k, v, rows, solve, states, reads, target, plan):
    y, last, kept = tpu_walk.forward(plan, True, reads, target, q, k, v, rows, solve, states)
    return (y, last), (q, k, v, rows, solve, kept, reads, target)


def _walk_bwd(plan, residuals, cotangents):
    q, k, v, rows, solve, kept, reads, target = residuals
    dy, dlast = cotangents
    dq, dk, dv, drows, *dsolve, dstates = tpu_walk.backward(
        backward_plan(plan), reads, target, q, k, v, rows, solve, kept, dy, dlast
    )
    return dq, dk, dv, drows, (dsolve[0] if dsolve else None), dstates, None, None


_walk.defvjp(_walk_fwd, _walk_bwd)
