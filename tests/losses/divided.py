"""`python -m tests.losses.divided`: the loss with a vocabulary that eight devices do not divide."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from multiscreen_jax import losses
from multiscreen_jax.sharding import make_mesh

BATCH, LENGTH, WIDTH, VOCABULARY = 2, 64, 32, 1003  # not a multiple of 2, 4 or 8


def main() -> None:
    rng = np.random.default_rng(0)
    hidden, table = (
        jnp.asarray(rng.normal(size=shape), jnp.float32)
        for shape in ((BATCH, LENGTH, WIDTH), (VOCABULARY, WIDTH))
    )
    targets = jnp.asarray(rng.integers(0, VOCABULARY, (BATCH, LENGTH)), jnp.int32)
    targets = targets.at[0, 0].set(VOCABULARY - 1)
    weights = jnp.asarray(rng.uniform(size=(BATCH, LENGTH)), jnp.float32)

    def everything(hidden, table):
        value = jax.value_and_grad(losses.cross_entropy, (0, 1))(hidden, table, targets, weights)
        return value, losses.token_hits(hidden, table, targets)

    alone = jax.jit(everything).lower(hidden, table).compile()
    for mesh in (make_mesh(model=8), make_mesh(data=2, model=4), make_mesh(seq=4, model=2)):
        whole = NamedSharding(mesh, PartitionSpec())
        with jax.set_mesh(mesh):
            divided = jax.jit(everything).lower(*jax.device_put((hidden, table), whole)).compile()
            got = divided(*jax.device_put((hidden, table), whole))
        for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(alone(hidden, table)), strict=True):
            np.testing.assert_allclose(x, y, rtol=2e-5, atol=1e-5)
        share = divided.cost_analysis()["flops"] / alone.cost_analysis()["flops"]
        assert share < 1.2 / 8, f"a device of {mesh.shape} computes {share:.2f} of the loss"
        print(dict(mesh.shape), f"{share:.3f}")


if __name__ == "__main__":
    main()
