"""A stack of equal blocks: one scan over layers, named remat policies, a loop for debugging.

Every model runs its layers through `LayerStack`. The parameters of all layers live in one tree with
a leading layer axis, so that compile time and the size of the program do not grow with depth, and
so that a checkpoint has the same layout whether the layers were scanned or looped over.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from multiscreen_jax.layers.parameters import stacked
from multiscreen_jax.layers.sown import SOWN
from multiscreen_jax.sharding import shard_activations

COLLECTED = ("intermediates", *SOWN)

REMAT_POLICIES: dict[str, Callable[..., bool] | None] = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "mixer": jax.checkpoint_policies.save_only_these_names("mixer_output"),
}


def check_remat(remat: str) -> None:
    """Raise ValueError unless `remat` names a policy; for a config's `__post_init__`."""
    if remat not in tuple(REMAT_POLICIES):  # may be of a kind that has no hash
        raise ValueError(f"remat must be one of {sorted(REMAT_POLICIES)}, got {remat!r}")


def mark_mixer_output(x: Array) -> Array:
    """Name what mixes tokens, so that the remat policy "mixer" keeps it and recomputes the rest.

    A mixer may name what its op returns instead of its last projection: the backward pass needs
    the first and can do without the second.
    """
    return checkpoint_name(x, "mixer_output")


class LayerStack(nn.Module):
    """`num_layers` copies of one block, applied in order.

    A block is a Flax module `block_class(**block_fields)` with
    `__call__(x, layer_cache, shared) -> (x, layer_out)`. `x` [B, T, D] runs through all layers.
    `shared`, one pytree (segment ids, positions, ...), is the same for each. `layer_cache` is this
    layer's slice of a pytree whose leaves are stacked on a leading layer axis, or None. `layer_out`
    comes back stacked the same way, whatever its structure: a whole new cache, or only the entries
    to write.

    Parameters and sown intermediates of the block appear directly under this module's name,
    stacked on axis 0; each layer draws its own initialisation. What the backward pass finds in
    memory follows `remat`:

      none    keep every activation
      full    keep each block's input, recompute the block
      dots    keep the results of the weight matmuls, recompute the rest
      mixer   keep each block's input and what its mixer named (see `mark_mixer_output`)

    Attributes:
        block_class: the module class of one block.
        block_fields: its constructor arguments.
        num_layers: number of blocks.
        remat: one of the names above.
        unroll: run a Python loop over layers instead of a scan. Outside jit every layer then works
            on concrete arrays, so prints and breakpoints inside a block see values. The parameter
            tree is the same.
    """

    block_class: type[nn.Module]
    block_fields: dict[str, Any]
    num_layers: int
    remat: str = "none"
    unroll: bool = False

    def setup(self) -> None:
        check_remat(self.remat)
        scanned = nn.scan(
            _with_remat(self.block_class, self.remat, prevent_cse=False),
            length=self.num_layers,
            variable_axes={"params": 0, **dict.fromkeys(COLLECTED, 0)},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast),
            out_axes=0,
        )
        self.block = scanned(**self.block_fields)
        nn.share_scope(self, self.block)  # parameters under this module's own name, no extra level

    def __call__(
        self, x: Float[Array, "B T D"], cache: Any = None, shared: Any = None
    ) -> tuple[Float[Array, "B T D"], Any]:
        """Run all layers; returns (x [B, T, D], the blocks' second outputs stacked on axis 0)."""
        x = shard_activations(x)
        if self.unroll and not self.is_initializing():
            return self._loop(x, cache, shared)
        with stacked("layers"):
            return self.block(x, cache, shared)

    def _loop(self, x: Array, cache: Any, shared: Any) -> tuple[Array, Any]:
        stacked = self.variables["params"]
        kept = [kind for kind in COLLECTED if self.is_mutable_collection(kind)]
        block = _with_remat(self.block_class, self.remat, prevent_cse=True)(
            **self.block_fields, parent=None
        )
        outs, sown = [], []
        for layer in range(self.num_layers):
            params, layer_cache = jax.tree.map(lambda leaf: leaf[layer], (stacked, cache))  # noqa: B023
            (x, out), mutated = block.apply(
                {"params": params}, x, layer_cache, shared, mutable=kept
            )
            outs.append(out)
            sown.append(mutated)
        for kind, values in _stack(sown).items():
            for name, value in values.items():
                self.put_variable(kind, name, value)
        return x, _stack(outs)


def _stack(trees: list[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def _with_remat(block_class: type[nn.Module], remat: str, prevent_cse: bool) -> type[nn.Module]:
    if remat == "none":
        return block_class
    return nn.remat(block_class, policy=REMAT_POLICIES[remat], prevent_cse=prevent_cse)
