"""The log-linear ops on sequences divided among the devices of a mesh axis.

As in `linear_attention.parallel`: called inside `jax.shard_map(check_vma=False)` on a device's
consecutive tokens. With T = 2^m of them on each of n devices, a token of shard d reads those of an
earlier shard e in one level only,

    level = m + bit_length(d xor e)

which is the rule of the levels again, for shards as for tokens. So levels 0 to m are the op on the
shard, and every level above is a state that tokens read whole: what shards of one bucket have
written, passed on to the start of this one.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from pallas_kernels.common.numerics import accumulation_dtype
from pallas_kernels.linear_attention import gated_delta_rule
from pallas_kernels.linear_attention.parallel import Shard, additive_shard, delta_shard, pass_on
from pallas_kernels.log_linear import api
from pallas_kernels.log_linear.levels import LogLinearState, bit_length


def log_linear_ssd(
    q: Float[Array, "B T G K"],
    k: Float[Array, "B T G K"],
    v: Float[Array, "B T H V"],
    g: Float[Array, "B T H"],
    level_scales: Float[Array, "B T H L"],
    beyond_levels: str = "error",
    *,
    axis_name: str,
    scale: float | None = None,
    initial_state: LogLinearState | None = None,
    return_state: bool = False,
    segment_ids: Int[Array, "B T"] | None = None,
    max_documents: int | None = None,
    precision: jax.lax.PrecisionLike = None,
    **settings: Any,
) -> tuple[Float[Array, "B T H V"], LogLinearState | None]:
    """`log_linear_ssd` of a divided sequence (arXiv:2506.04761, section 3.3).

    Args:
        q, k, v, g, level_scales: this device's T tokens, a power of two, the same on all devices.
            The L levels have to hold the whole sequence, or else `beyond_levels` decides.
        axis_name: of the mesh, inside `jax.shard_map(check_vma=False)`.
        return_state: also return the state after the whole sequence, the same on all devices.
        initial_state, segment_ids: have to be None. Levels count from a document's start, and
            shards would no longer be aligned to them. So `max_documents` bounds nothing.
        settings: chunk_size and implementation.

    The result, dtypes, errors and the other arguments are those of the op, and besides:

    Raises:
        ValueError: T is not a power of two.
        NotImplementedError: `initial_state` or `segment_ids` are given.

    Cost: beside the op's, 2 T H K V (1 + ceil(log2 n)) FLOPs. From n devices every one gets
    n B H (K V + 1) numbers of float32, and gives back as many backwards; `return_state` also sums
    the B H K V L numbers of the state over the devices.
    """
    del max_documents
    y, state = _local(
        partial(api.log_linear_ssd, q, k, g=g, scale=scale, precision=precision, **settings),
        v, level_scales, beyond_levels, return_state, initial_state, segment_ids,
    )  # fmt: skip
    q, k, values, g = (x.astype(accumulation_dtype(q, k, v)) for x in (q, k, v, g))
    reads = q if scale is None else q * scale
    fading = jnp.exp(jnp.cumsum(g, axis=1))
    shard = additive_shard(k, values, g, precision)
    y, state = _add_levels_above(
        y, state, reads, fading, shard, level_scales, beyond_levels, axis_name, precision
    )
    return y.astype(v.dtype), state


def log_linear_gated_delta_rule(
    q: Float[Array, "B T G K"],
    k: Float[Array, "B T G K"],
    v: Float[Array, "B T H V"],
    g: Float[Array, "B T H"],
    beta: Float[Array, "B T H"],
    level_scales: Float[Array, "B T H L"],
    beyond_levels: str = "error",
    *,
    axis_name: str,
    scale: float | None = None,
    initial_state: LogLinearState | None = None,
    return_state: bool = False,
    segment_ids: Int[Array, "B T"] | None = None,
    max_documents: int | None = None,
    precision: jax.lax.PrecisionLike = None,
    **settings: Any,
) -> tuple[Float[Array, "B T H V"], LogLinearState | None]:
    """`log_linear_gated_delta_rule` of a divided sequence (arXiv:2506.04761, section 3.4).

    Arguments and errors as in `log_linear_ssd` here; `settings` are also those of the
    `gated_delta_rule`, which finds what tokens read of the states before the shard.

    Cost: beside the op's, 2 T H K V ceil(log2 n) FLOPs and one `gated_delta_rule` of K + V values.
    From n devices every one gets n B H K (V + K) numbers of float32, and gives back as many
    backwards; to pass them on takes 2 n B H K K (K + V) FLOPs.
    """
    del max_documents
    run = {"scale": 1.0 if scale is None else scale, "precision": precision, **settings}
    y, state = _local(
        partial(api.log_linear_gated_delta_rule, q, k, g=g, beta=beta, **run),
        v, level_scales, beyond_levels, return_state, initial_state, segment_ids,
    )  # fmt: skip
    rule = partial(gated_delta_rule, q, k, g=g, beta=beta, **run)
    _, reads, shard = delta_shard(rule, v, k.shape[-1])
    y, state = _add_levels_above(
        y, state, reads, None, shard, level_scales, beyond_levels, axis_name, precision
    )
    return y.astype(v.dtype), state


def _local(
    op, v, scales, beyond_levels, return_state, initial_state, segment_ids
) -> tuple[Float[Array, "B T H V"], LogLinearState | None]:  # fmt: skip
    """The op on the shard alone, which checks its inputs; not rounded yet."""
    for name, given in (("initial_state", initial_state), ("segment_ids", segment_ids)):
        if given is not None:
            raise NotImplementedError(
                f"{name} of a sequence divided among devices: levels count from a document's "
                "start, which only shards of a single document from its first token are aligned to"
            )
    length = v.shape[1]
    if length & (length - 1):
        raise ValueError(f"every device must have a power of two of tokens, got {length}")
    v = v.astype(accumulation_dtype(v))
    return op(v=v, level_scales=scales, beyond_levels=beyond_levels, return_state=return_state)


def _add_levels_above(
    y: Float[Array, "B T H V"],
    state: LogLinearState | None,
    reads: Float[Array, "B T R K"],
    fading: Float[Array, "B T H"] | None,
    shard: Shard,
    scales: Float[Array, "B T H L"],
    beyond_levels: str,
    axis_name: str,
    precision: jax.lax.PrecisionLike,
) -> tuple[Float[Array, "B T H V"], LogLinearState | None]:
    """Result and state of the shard alone, completed by the levels of the shards before it.

    `reads` are rows of the state before the shard, of heads or groups; `fading` is what is left of
    it, where `reads` do not know.
    """
    batch, length = y.shape[:2]
    count = jax.lax.axis_size(axis_name)
    scales, levels = api._levels(scales, beyond_levels, count * length, None, packed=False)
    buckets = _bucket_states(shard, axis_name)
    level = np.minimum(length.bit_length() + np.arange(buckets.shape[2]), levels - 1)
    weights = scales[..., level].astype(y.dtype)
    if fading is not None:
        weights = weights * fading[..., None]
    for bucket in range(len(level)):
        y = y + weights[..., bucket, None] * _read(reads, buckets[:, :, bucket], precision)
    if state is None:
        return y, None

    # Only the last device has the levels of the last tokens.
    after = pass_on(shard.through, buckets)
    missing = levels - state.levels.shape[2]
    whole = jnp.pad(state.levels, ((0, 0), (0, 0), (0, missing), (0, 0), (0, 0)))
    whole = whole.at[:, :, level].add(after)
    mine = jax.lax.axis_index(axis_name) == count - 1
    whole = jax.lax.psum(jnp.where(mine, whole, 0), axis_name)
    return y, LogLinearState(whole, jnp.full(batch, count * length, jnp.int32))


def _bucket_states(shard: Shard, axis_name: str) -> Float[Array, "B H J K V"]:
    """State j before this device's shard is that of the shards in the bucket of bit j.

    From the last shard before this one to the first: so one product of transitions serves all
    buckets, where forwards every bucket would have to be passed on by itself.
    """
    count, here = jax.lax.axis_size(axis_name), jax.lax.axis_index(axis_name)

    def step(between, xs):
        number, shard = xs
        earlier = number < here
        arrives = jnp.where(earlier, pass_on(between, shard.written), 0)
        return jnp.where(earlier, pass_on(between, shard.through), between), arrives

    between = jnp.ones_like(shard.through)
    if between.ndim == 4:
        between = between * jnp.eye(between.shape[-1], dtype=between.dtype)
    xs = (jnp.arange(count), jax.lax.all_gather(shard, axis_name))
    _, arrives = jax.lax.scan(step, between, xs, reverse=True)
    bit = bit_length(jnp.arange(count) ^ here) - 1
    member = bit[:, None] == np.arange((count - 1).bit_length())
    return jnp.einsum("nj,nbhkv->bhjkv", member.astype(arrives.dtype), arrives, precision="highest")


def _read(
    reads: Float[Array, "B T R K"],
    state: Float[Array, "B H K V"],
    precision: jax.lax.PrecisionLike,
) -> Float[Array, "B T H V"]:
    groups = reads.shape[2]
    state = state.reshape(state.shape[0], groups, -1, *state.shape[2:])
    y = jnp.einsum("btgk,bgrkv->btgrv", reads, state, precision=precision)
    return y.reshape(*y.shape[:2], -1, y.shape[-1])
