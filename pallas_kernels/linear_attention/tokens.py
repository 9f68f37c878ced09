"""What kernels of the linear family need to know of every token: what decays have left.

A kernel multiplies by exp(G_i - G_j) for pairs of tokens of a chunk, with G the sums of g from the
chunk's start. Where decays are strong that difference cancels, so G is kept as a sum of two
numbers, and it starts anew with every document, so that none rounds another's.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float

from pallas_kernels.common.documents import Documents, document_starts
from pallas_kernels.linear_attention.triangular import unit_lower_inverse

# exp of it is zero in float32, so gates below it change nothing, and sums of them over a chunk are
# small enough to be precise. A gate of -inf would be NaN in differences.
_LEAST_GATE = -105.0


class TokenDecays(NamedTuple):
    """Of the tokens of a chunk, each [B,H,N,C].

    Attributes:
        sums: G, of g from the start of the chunk, or of the document if that is later.
        rest: what `sums` lost to rounding.
        from_start: what is left of the state before the chunk, in [0, 1].
        to_end: what is left of the token at the end of the chunk.
    """

    sums: Float[Array, "B H N C"]
    rest: Float[Array, "B H N C"]
    from_start: Float[Array, "B H N C"]
    to_end: Float[Array, "B H N C"]


class Levels(NamedTuple):
    """What levels add to a walk over chunks; kernels say how it goes.

    Attributes:
        scales: [B,T,H,L], of the levels inside a chunk, then of the states.
        reads: int32 [B,N], a bit for every state that chunk n reads and moves on.
        target: int32 [B,N], the state that chunk n writes, or -1.
    """

    scales: Array
    reads: Array
    target: Array

    def masks(self, chunks: int) -> tuple[Array, Array]:
        """`reads` and `target` of more chunks; those after the end do nothing."""
        after = [(0, 0), (0, chunks - self.reads.shape[1])]
        return jnp.pad(self.reads, after), jnp.pad(self.target, after, constant_values=-1)


def token_decays(g: Float[Array, "B T H"], docs: Documents | None, size: int) -> TokenDecays:
    """For T a multiple of the chunk size; differentiable in g, through `sums` alone."""
    chunks = jnp.moveaxis(g, 1, 2).reshape(g.shape[0], g.shape[2], -1, size)
    chunks = jnp.maximum(chunks.astype(jnp.float32), _LEAST_GATE)
    if docs is None:
        sums, rest = _running_sums(chunks, None)
        return _decays(sums, rest, True, True)
    starts = document_starts(docs).reshape(g.shape[0], 1, -1, size)
    begun = jnp.cumsum(starts, axis=-1)
    sums, rest = _running_sums(chunks, jnp.broadcast_to(starts, chunks.shape))
    return _decays(sums, rest, begun == 0, begun == begun[..., -1:])


def _decays(sums, rest, reads_state, reaches_end) -> TokenDecays:
    left = (sums[..., -1:] - sums) + (rest[..., -1:] - rest)
    # The masks come before exp, so that neither it nor its gradient overflows.
    return TokenDecays(
        sums,
        rest,
        from_start=jnp.exp(jnp.where(reads_state, sums + rest, -jnp.inf)),
        to_end=jnp.exp(jnp.where(reaches_end, left, -jnp.inf)),
    )


@jax.custom_jvp
def _running_sums(
    g: Float[Array, "B H N C"], starts: Bool[Array, "B H N C"] | None
) -> tuple[Float[Array, "B H N C"], Float[Array, "B H N C"]]:
    """Sums of g along the last axis, anew from every start, and what they lost to rounding."""

    def join(earlier, later):
        (a, a_rest), (b, b_rest) = earlier, later
        total = a + b
        back = total - a
        lost = (a - (total - back)) + (b - back) + (a_rest + b_rest)
        sums = total + lost
        return sums, lost - (sums - total)

    return _scan(join, starts, (g, jnp.zeros_like(g)))


@_running_sums.defjvp
def _running_sums_jvp(primals, tangents):
    (dsums,) = _scan(lambda a, b: (a[0] + b[0],), primals[1], (tangents[0],))
    return _running_sums(*primals), (dsums, jnp.zeros_like(dsums))


def _scan(join, starts, values):
    """Of values along the last axis, joined from the last start on."""
    if starts is None:
        return jax.lax.associative_scan(join, values, axis=-1)

    def join_from_start(earlier, later):
        *a, a_starts = earlier
        *b, b_starts = later
        kept = [jnp.where(b_starts, y, x) for x, y in zip(join(a, b), b, strict=True)]
        return *kept, a_starts | b_starts

    *values, _ = jax.lax.associative_scan(join_from_start, (*values, starts), axis=-1)
    return tuple(values)


def pair_decays(decays: TokenDecays, docs: Documents | None) -> Float[Array, "B H N C C"]:
    """D_ij, what is left of token j when token i reads it: zero for j > i and between documents."""
    sums, rest = decays.sums, decays.rest
    left = (sums[..., :, None] - sums[..., None, :]) + (rest[..., :, None] - rest[..., None, :])
    seen = np.tri(sums.shape[-1], dtype=bool)
    if docs is not None:
        index = docs.index.reshape(len(sums), 1, -1, sums.shape[-1])
        seen = seen & (index[..., :, None] == index[..., None, :])
    return jnp.exp(jnp.where(seen, left, -jnp.inf))


def solve_chunks(
    k: Float[Array, "B G N C K"],
    beta: Float[Array, "B H N C"],
    decays: TokenDecays,
    docs: Documents | None,
    exact: bool,
) -> Float[Array, "B H N C C"]:
    """X_ij = ((I + strictly_lower(beta_i D_ij k_i . k_j))^-1)_ij beta_j, what token j adds to the
    update of token i in the delta rule. D are the decays between tokens.

    (Gated DeltaNet, arXiv:2412.06464, section 3.3.) Differentiable; `exact` are float32 products.
    """
    overlap = jnp.einsum(
        "bgnik,bgnjk->bgnij", k, k,
        precision="highest" if exact else None, preferred_element_type=jnp.float32,
    )  # fmt: skip
    overlap = jnp.repeat(overlap, beta.shape[1] // k.shape[1], axis=1)
    overlap = overlap * pair_decays(decays, docs) * beta[..., :, None]
    earlier = np.tri(beta.shape[-1], k=-1, dtype=bool)
    return unit_lower_inverse(jnp.where(earlier, overlap, 0)) * beta[..., None, :]


def products_are_exact(q, k, v, precision) -> bool:
    """Whether products are to be float32; raises for what the kernels do not support.

    q and k decide: v may be wider, as where steps multiply it, for results that are.
    """
    dtypes = {jnp.dtype(x.dtype) for x in (q, k, v)}
    if not dtypes <= {jnp.dtype(jnp.float32), jnp.dtype(jnp.bfloat16)}:
        names = sorted(dtype.name for dtype in dtypes)
        raise NotImplementedError(f"q, k, v must be float32 or bfloat16, got {', '.join(names)}")
    given = precision if isinstance(precision, tuple | list) else (precision,)
    wants_highest = any(p in (lax.Precision.HIGHEST, "highest", "float32") for p in given)
    return wants_highest or jnp.dtype(jnp.float32) in {jnp.dtype(x.dtype) for x in (q, k)}
