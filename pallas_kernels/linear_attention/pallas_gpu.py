"""The linear family on GPUs: the ops, their gradient, and what XLA does around the kernels."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from pallas_kernels.common.documents import Documents
from pallas_kernels.common.pallas import pl
from pallas_kernels.linear_attention import gpu_walk
from pallas_kernels.linear_attention.gpu_walk import CHUNK, ChunkMaps, Schedule
from pallas_kernels.linear_attention.tokens import (
    Levels,
    pair_decays,
    products_are_exact,
    solve_chunks,
    token_decays,
)

_INNER = CHUNK.bit_length()  # levels inside a chunk
_KEPT_BYTES = 2**28  # of states before chunks, in the backward pass
_LEAST_SEGMENT = 8  # chunks


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
    """The results, and the states after the last chunk, for NVIDIA GPUs from sm_80 on.

    Where q and k are bfloat16, so are the operands of all products, with float32 sums, decays and
    states; float32 q or k, and precision "highest", take float32 products (in kernels three TF32
    products each). Chunks have 64 tokens. Without `beta` nothing is erased (SSD); padding is zero.
    Zeros are added to features up to the next sizes that kernels take.

    With levels J states, and documents that start where chunks do; without, one state. States that
    `levels.reads` does not name are taken as empty, and those that a chunk empties are zero.

    Raises:
        NotImplementedError: for other dtypes than float32 and bfloat16, a greater K than
            `gpu_walk.padded` has a kernel for, or an older GPU.
    """
    exact = products_are_exact(q, k, v, precision)
    operand = jnp.dtype(jnp.float32 if exact else jnp.bfloat16)
    batch, length, heads, value_dim = v.shape
    key_dim = q.shape[3]
    padded = gpu_walk.padded(key_dim, value_dim, operand, beta is not None, levels is not None)
    keys, values = (0, padded[0] - key_dim), (0, padded[1] - value_dim)
    states = jnp.pad(states.astype(jnp.float32), [(0, 0)] * 3 + [keys, values])
    dtype = v.dtype
    segment = _segment_size(pl.cdiv(length, CHUNK), states.size * operand.itemsize)
    after = [(0, 0), (0, -length % (segment * CHUNK))]

    def pad(x, **how):
        return jnp.pad(x, after + [(0, 0)] * (x.ndim - 2), **how)

    q, k, v = (
        jnp.pad(pad(x.astype(operand)), [(0, 0)] * 3 + [features])
        for x, features in ((q, keys), (k, keys), (v, values))
    )
    g = pad(jnp.zeros((batch, length, heads), jnp.float32) if g is None else g)
    beta = None if beta is None else pad(beta.astype(jnp.float32))
    packed = schedule = scales = None
    if levels is not None:
        schedule = Schedule(*levels.masks(v.shape[1] // CHUNK))
        scales = pad(levels.scales.astype(jnp.float32))
    elif documents is not None:
        packed = _by_segment(Documents(*(pad(x, mode="edge") for x in documents)), segment)

    def split(x, size=segment * CHUNK):
        return jnp.moveaxis(x.reshape(batch, -1, size, *x.shape[2:]), 1, 0)

    tokens, packed = jax.tree.map(split, ((q, k, v, g, beta, scales), packed))
    schedule = jax.tree.map(partial(split, size=segment), schedule)
    states, y = lax.scan(
        lambda states, xs: _over_segment(exact, states, xs[0], xs[1]),
        states,
        (tokens, (packed, schedule)),
    )
    y = jnp.moveaxis(y, 0, 1).reshape(*v.shape)
    return y[:, :length, :, :value_dim].astype(dtype), states[..., :key_dim, :value_dim]


def _segment_size(chunks: int, state_bytes: int) -> int:
    """Chunks whose temporaries are in memory together, of about equal segments."""
    most = max(_LEAST_SEGMENT, _KEPT_BYTES // state_bytes)
    return pl.cdiv(chunks, pl.cdiv(chunks, most))


def _by_segment(docs: Documents, segment: int) -> Documents:
    """With documents counted from that of the token before the segment."""
    index = docs.index.reshape(len(docs.index), -1, segment * CHUNK)
    before = jnp.pad(index[:, :-1, -1:], [(0, 0), (1, 0), (0, 0)])
    return docs._replace(index=(index - before).reshape(docs.index.shape))


# -- one segment -----------------------------------------------------------------------------------


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _over_segment(exact, states, tokens, masks):
    """The states after a segment, and its results.

    For the backward pass only the inputs are kept; there it is computed again, with residuals.
    """
    return _segment(exact, states, tokens, masks)


def _segment(exact, states, tokens, masks):
    packed, schedule = masks
    y, maps = _chunk_maps(tokens, packed, exact)
    seen, states = _walk(maps, states, schedule)
    return states, (y + seen).astype(maps.updates.dtype)


def _segment_fwd(exact, states, tokens, masks):
    return _segment(exact, states, tokens, masks), (states, tokens, masks)


def _segment_bwd(exact, inputs, cotangents):
    # Else the compiler would find that it has computed all this before, and keep it.
    states, tokens, masks = lax.optimization_barrier(inputs)
    _, pullback = jax.vjp(lambda *x: _segment(exact, x[0], x[1], masks), states, tokens)
    return *pullback(cotangents), None


_over_segment.defvjp(_segment_fwd, _segment_bwd)


# -- inside chunks ---------------------------------------------------------------------------------


def _chunk_maps(tokens, packed, exact):
    """What tokens read inside their chunks, [B,T,H,V], and `ChunkMaps`.

    With X the inverse of the delta rule's system times beta (no X: SSD), D the decays between
    tokens, E what is left of the state before the chunk and F of a token after it:

        B_ij = (q_i . k_j) D_ij      P = B X  (SSD: B)      y = (P * scales) v

               reads               weights      erases      updates   writes     through
        SSD    q                   E lambda_l   none        v F       k          E_last
        delta  (q E) - P (k E)     lambda_l     X (k E)     X v       k F        E_last

    (Mamba-2, arXiv:2405.21060, section 6; Gated DeltaNet, arXiv:2412.06464, section 3.3; Log-Linear
    Attention, arXiv:2506.04761, section 3.)
    """
    q, k, v, g, beta, scales = tokens
    product = partial(
        jnp.einsum,
        precision="highest" if exact else None,
        preferred_element_type=jnp.float32,
    )
    shape, operand = v.shape, v.dtype
    decays = token_decays(g, packed, CHUNK)
    heads = decays.sums.shape[1]
    q, k, v = (x.reshape(x.shape[0], -1, CHUNK, *x.shape[2:]) for x in (q, k, v))
    overlaps = product("bnigk,bnjgk->bgnij", q, k)
    overlaps = jnp.repeat(overlaps, heads // overlaps.shape[1], axis=1)
    overlaps = (overlaps * pair_decays(decays, packed)).astype(operand)
    from_start, to_end = (
        jnp.moveaxis(x, 1, 3)[..., None] for x in (decays.from_start, decays.to_end)
    )
    weights = None if scales is None else jnp.moveaxis(scales[..., _INNER:], 1, 3)
    if beta is None:
        pairs, reads, writes, erases = overlaps, q, k, None
        updates = v * to_end
        left = decays.from_start.reshape(*decays.sums.shape[:2], 1, -1)
        weights = left if weights is None else left * weights
    else:
        q, k = (jnp.repeat(x, heads // x.shape[3], axis=3) for x in (q, k))
        beta = jnp.moveaxis(beta, 1, 2).reshape(decays.sums.shape)
        solve = solve_chunks(jnp.moveaxis(k, 3, 1), beta, decays, packed, exact).astype(operand)
        pairs = product("bhnij,bhnjl->bhnil", overlaps, solve).astype(operand)
        keys = (k * from_start).astype(operand)
        reads = q * from_start - product("bhnij,bnjhk->bnihk", pairs, keys)
        erases = product("bhnij,bnjhk->bnihk", solve, keys)
        updates = product("bhnij,bnjhv->bnihv", solve, v)
        writes = k * to_end
    if scales is not None:
        pairs = (pairs * _pair_scales(scales[..., :_INNER])).astype(operand)
    y = product("bhnij,bnjhv->bnihv", pairs, v)

    def operands(x):
        return x.astype(operand).reshape(x.shape[0], -1, *x.shape[3:])

    return y.reshape(shape), ChunkMaps(
        operands(reads),
        operands(writes),
        operands(updates),
        None if erases is None else operands(erases),
        weights,
        decays.from_start[..., -1],
    )


def _pair_scales(scales: Float[Array, "B T H I"]) -> Float[Array, "B H N C C"]:
    """Of level(i, j), by reading token i."""
    scales = jnp.moveaxis(scales, 1, 2)
    scales = scales.reshape(*scales.shape[:2], -1, CHUNK, 1, _INNER)
    i, j = np.indices((CHUNK, CHUNK))
    pairs = scales[..., 0]
    for level in range(1, _INNER):
        pairs = jnp.where((i ^ j) >= 1 << (level - 1), scales[..., level], pairs)
    return pairs


# -- the gradient of the walk ----------------------------------------------------------------------


@jax.custom_vjp
def _walk(maps: ChunkMaps, states: Float[Array, "B H J K V"], schedule: Schedule | None):
    y, last = gpu_walk.forward(maps, states, schedule, keep=False)
    return y, last


def _walk_fwd(maps, states, schedule):
    y, last, kept = gpu_walk.forward(maps, states, schedule, keep=True)
    return (y, last), (maps, schedule, kept)


def _walk_bwd(residuals, cotangents):
    maps, schedule, kept = residuals
    dy, dlast = cotangents
    dupdates, dthrough, dstates, dwritten, *dmoved = gpu_walk.backward(
        maps, schedule, kept, dy, dlast
    )
    # Letters: n chunk, i token, j state, r one of the heads that share reads and writes.
    product = partial(
        jnp.einsum,
        precision="highest" if kept.dtype == jnp.float32 else None,
        preferred_element_type=jnp.float32,
    )
    groups = maps.reads.shape[2]

    def of_groups(x):
        """[B,T,G,F] -> [B,N,C,G,F]"""
        return x.reshape(x.shape[0], -1, CHUNK, *x.shape[2:])

    def of_heads(x):
        """[B,T,H,F] -> [B,N,C,G,R,F]"""
        return of_groups(x.reshape(*x.shape[:2], groups, -1, x.shape[3]))

    def states(x):
        """[B,H,N,...] -> [B,G,R,N,...]"""
        return x.reshape(x.shape[0], groups, -1, *x.shape[2:])

    def tokens(x, like):
        return x.astype(like.dtype).reshape(like.shape)

    dy, kept, dwritten = of_heads(dy), states(kept), states(dwritten)
    reads, writes = of_groups(maps.reads), of_groups(maps.writes)
    dseen, dweights = dy[:, :, :, :, :, None], None
    if maps.weights is not None:
        seen = product("bnigk,bgrnjkv->bnigrjv", reads, kept)
        dweights = jnp.moveaxis(jnp.sum(seen * dseen, axis=-1), (3, 4, 5), (1, 2, 3))
        dweights = dweights.reshape(maps.weights.shape)
        weights = states(maps.weights)
        weights = weights.reshape(*weights.shape[:4], -1, CHUNK)
        dseen = dseen * jnp.moveaxis(weights, (1, 2, 3), (3, 4, 5))[..., None]
    dreads = product("bnigrjv,bgrnjkv->bnigk", dseen.astype(kept.dtype), kept)
    dwrites = product("bnigrv,bgrnkv->bnigk", of_heads(maps.updates), dwritten)
    derases = None
    if maps.erases is not None:
        dmoved = states(dmoved[0]) if dmoved else dwritten[:, :, :, :, None]
        erased = product("bnigrk,bgrnjkv->bnigrjv", of_heads(maps.erases), kept)
        derased = product("bnigk,bgrnjkv->bnigrjv", writes, dmoved)
        dwrites -= product("bnigrjv,bgrnjkv->bnigk", erased.astype(kept.dtype), dmoved)
        derases = -product("bnigrjv,bgrnjkv->bnigrk", derased.astype(kept.dtype), kept)
        derases = tokens(derases, maps.erases)
    dmaps = ChunkMaps(
        tokens(dreads, maps.reads),
        tokens(dwrites, maps.writes),
        dupdates.astype(maps.updates.dtype),
        derases,
        dweights,
        jnp.sum(dthrough, axis=-1),
    )
    return dmaps, dstates, None


_walk.defvjp(_walk_fwd, _walk_bwd)
