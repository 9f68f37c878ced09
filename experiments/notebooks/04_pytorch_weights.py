# %% [markdown]
# # PyTorch weights, checked
#
# The PyPI package `multiscreen` is a PyTorch port of the model. This notebook makes one with random
# weights, converts it, compares logits, the loss and every gradient, and goes back.
#
# It needs PyTorch and the package: `pip install torch==2.13.0 multiscreen==0.2.0` (or the extra
# `torch` of this library).

# %%
import math

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import multiscreen
import numpy as np
import torch

import multiscreen_jax as mj

plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "figure.dpi": 80})
SOURCE = "multiscreen/lucidrains"
print(mj.convert.describe(SOURCE))

# %% [markdown]
# ## Their model, our config
#
# Every parameter is random, windows lie on both sides of the threshold and of the length, and most
# queries accept something: nothing is compared with zero.

# %%
config = mj.models.MultiscreenConfig(
    vocab_size=53, model_dim=20, num_layers=3, num_heads=5, key_dim=6, value_dim=12,
    window_threshold=24.0, precision="highest",
)  # fmt: skip
torch.manual_seed(0)
theirs = multiscreen.MultiScreen(
    num_tokens=53, dim=20, depth=3, heads=5, dim_keys=6, dim_values=12, window_threshold=24.0
).train()
with torch.no_grad():
    for name, parameter in theirs.named_parameters():
        parameter.normal_(0, 0.3 if parameter.ndim > 1 else 0.5)
        if "learned_window" in name:
            parameter.copy_(torch.tensor([2.1, 5.5, 23.0, 25.7, 90.0]).sub(1).log())
        if "scale_unembed" in name:
            parameter.fill_(math.log(3.0))

params = mj.convert.from_torch(SOURCE, theirs.state_dict(), config)
model = mj.models.Multiscreen(config)
jax.tree.map(jnp.shape, params)

# %% [markdown]
# ## Logits, loss, gradients

# %%
tokens = np.random.default_rng(1).integers(0, 53, (2, 68))
logits = model.apply({"params": params}, jnp.asarray(tokens[:, :-1], jnp.int32)).logits
their_logits = theirs(torch.from_numpy(tokens[:, :-1])).detach().numpy()
print(f"logits up to {np.abs(their_logits).max():.1f}, ", end="")
print(f"largest difference {np.abs(logits - their_logits).max():.1e}")

batch = {"tokens": jnp.asarray(tokens, jnp.int32)}
loss, gradients = jax.jit(jax.value_and_grad(lambda p: mj.losses.next_token(model, p, batch)))(
    params
)
their_loss = theirs(torch.from_numpy(tokens), return_loss=True)
their_loss.backward()
print(f"loss {loss:.6f} and {their_loss.item():.6f}")
assert np.abs(logits - their_logits).max() < 5e-5
assert abs(loss - their_loss.item()) < 1e-5

# %% [markdown]
# Their gradients, under our names; each difference as a share of the largest element of its array.

# %%
their_gradients = mj.convert.from_torch(
    SOURCE, {name: p.grad for name, p in theirs.named_parameters()}, config
)
pairs = {
    jax.tree_util.keystr(path, simple=True, separator="/"): (ours, their)
    for (path, ours), their in zip(
        jax.tree_util.tree_leaves_with_path(gradients),
        jax.tree.leaves(their_gradients),
        strict=True,
    )
}
errors = {}
for name, (ours, their) in pairs.items():
    assert np.abs(their).max() > 1e-4, "a gradient of nothing tests nothing"
    errors[name] = float(np.abs(ours - their).max() / np.abs(their).max())
    assert errors[name] < 1e-4

figure, axis = plt.subplots(figsize=(6, 3), layout="constrained")
axis.barh(list(errors), [error * 1e6 for error in errors.values()], color="#3b528b")
axis.set(xlabel="relative difference of the gradients, in millionths")
plt.show()

# %% [markdown]
# ## And back
#
# A step of ours, loaded into their model, strictly: the loss falls there too, to the same number.

# %%
updated = jax.tree.map(lambda p, g: p - 0.05 * g, params, gradients)
named = mj.convert.to_torch(SOURCE, updated, config)
back = multiscreen.MultiScreen(
    num_tokens=53, dim=20, depth=3, heads=5, dim_keys=6, dim_values=12, window_threshold=24.0
).train()
back.load_state_dict({name: torch.from_numpy(np.array(x)) for name, x in named.items()})
with torch.no_grad():
    new_loss = back(torch.from_numpy(tokens), return_loss=True).item()
our_new_loss = float(mj.losses.next_token(model, updated, batch))
print(
    f"before {their_loss.item():.6f}, after a step: theirs {new_loss:.6f}, ours {our_new_loss:.6f}"
)
assert abs(new_loss - our_new_loss) < 1e-5
assert new_loss < their_loss.item()

# %% [markdown]
# The ways from and to other implementations work alike:

# %%
print("\n".join(mj.convert.sources()))
