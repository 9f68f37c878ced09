# %% [markdown]
# # Inside a tile
#
# A screening tile judges every key alone. With queries and keys of unit length,
#
# $$s_{ij} = q_i \cdot k_j,\qquad
# \alpha_{ij} = \max\Big(1 - \frac{1 - s_{ij}}{r},\, 0\Big)^2,\qquad
# m_{ij} = \tfrac12\Big(\cos\frac{\pi (i - j)}{w} + 1\Big)\ \text{ for } 0 \le i - j < w,$$
# $$h_i = \sum_j \alpha_{ij}\, m_{ij}\, v_j,\qquad u_i = \frac{h_i}{|h_i|} \tanh |h_i| .$$
#
# Each tile learns its width $r$ (how strict the test is) and its window $w$ (how far it looks).
# Nothing is divided by a sum over keys. Below, these lines are written out once more in NumPy and
# compared with the library's op and with a trained model.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import multiscreen_jax as mj
from pallas_kernels import screening

plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "figure.dpi": 80})


def trim(s, r):
    return np.maximum(1 - (1 - s) / r, 0) ** 2


def softmask(distance, w):
    inside = (distance >= 0) & (distance < w)
    return np.where(inside, (np.cos(np.pi * distance / w) + 1) / 2, 0)


def tanh_norm(h):
    length = np.linalg.norm(h, axis=-1, keepdims=True)
    return h * np.where(length > 0, np.tanh(length) / np.maximum(length, 1e-30), 1)


# %% [markdown]
# ## The three curves
#
# Trim: everything below $1 - r$ is exactly zero. Mask: one at distance zero, zero from the window
# on. TanhNorm: the direction stays, the length saturates at one, and zero stays zero.

# %%
figure, (left, middle, right) = plt.subplots(1, 3, figsize=(10, 2.6), layout="constrained")
s = np.linspace(-1, 1, 401)
for r in (0.2, 0.5, 0.9):
    left.plot(s, trim(s, r), label=f"r = {r}")
left.set(xlabel="similarity s", title="trim")
distance = np.arange(40)
for w in (4.0, 12.0, 36.0):
    middle.plot(distance, softmask(distance, w), marker=".", label=f"w = {w:g}")
middle.set(xlabel="distance i - j", title="softmask")
length = np.linspace(0, 4, 100)
right.plot(length, np.linalg.norm(tanh_norm(length[:, None] * np.array([0.6, 0.8])), axis=-1))
right.set(xlabel="length of h", title="length after TanhNorm", ylim=(0, 1.05))
for axis in (left, middle):
    axis.legend(frameon=False)
plt.show()

# %% [markdown]
# ## The op is these lines
#
# Random inputs, two tiles, one window infinite.

# %%
rng = np.random.default_rng(0)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


T, H, K, V = 50, 2, 4, 6
q, k = unit(rng.standard_normal((2, T, H, K)))
v = unit(rng.standard_normal((T, H, V)))
window, width = np.array([9.5, np.inf]), np.array([0.4, 0.8])


def by_hand(q, k, v, window, width):
    """h [T, H, V] and relevance [H, T, T], from q, k [T, H, K] and v [T, H, V]."""
    position = np.arange(len(q))
    distance = position[:, None] - position
    similarity = np.einsum("ihk,jhk->hij", q, k)
    relevance = np.stack(
        [
            trim(s, r) * softmask(distance, w)
            for s, r, w in zip(similarity, width, window, strict=True)
        ]
    )
    return np.einsum("hij,jhv->ihv", relevance, v), relevance


h, relevance = by_hand(q, k, v, window, width)
arrays = [jnp.asarray(x[None], jnp.float32) for x in (q, k, v)]
scales = [jnp.asarray(x, jnp.float32) for x in (window, width)]
for implementation in ("reference", "chunked"):
    given = screening(*arrays, *scales, implementation=implementation)[0]
    print(f"{implementation}: largest difference {np.abs(given - h).max():.1e}")
    assert np.abs(given - h).max() < 1e-5
print("keys accepted, by tile:", (relevance > 0).sum((1, 2)), "of", T * (T + 1) // 2)

# %% [markdown]
# ## A trained tile, step by step
#
# Flax hands out what the tiles of a model compute on the way. Of one layer we take the residual
# stream and the parameters, and compute the rest ourselves: value, relevance, h, TanhNorm.

# %%
model, params, tokenizer = mj.pretrained.load("multiscreen-speeches")
text = "The people of the United States have a right to the laws of the people."
tokens = jnp.asarray(tokenizer.encode(text))[None]
_, sown = model.apply({"params": params}, tokens, mutable=["intermediates"])
layers = jax.tree.map(np.asarray, sown["intermediates"]["layers"])
tiles = layers["tiles"]
print({name: x.shape for name, x in tiles.items()})

share = mj.inspect.acceptance(model, params, tokens).share_accepted()
wide = tiles["window"] > 6  # among the tiles that see more than a few tokens,
layer, head = np.unravel_index(np.argmin(np.where(wide, np.abs(share - 0.25), 1)), share.shape)
w, r = tiles["window"][layer, head], tiles["width"][layer, head]
print(
    f"layer {layer}, head {head}: window {w:.1f}, width {r:.2f}, accepts {share[layer, head]:.0%}"
)

# %%
weights = jax.tree.map(lambda x: np.asarray(x[layer]), params["layers"]["tiles"])
x = layers["residual"][layer, 0]
value = unit(np.einsum("td,dhv->thv", x, weights["value"]))
query, key = tiles["query"][layer, 0], tiles["key"][layer, 0]
h, relevance = by_hand(query, key, value, tiles["window"][layer], tiles["width"][layer])

for name, ours in {"pre_tanhnorm": h, "screening_output": tanh_norm(h)}.items():
    error = np.abs(ours - tiles[name][layer, 0]).max()
    print(f"{name}: largest difference from the model's {error:.1e}")
    assert error < 1e-4
maps = mj.inspect.relevance_maps(model, params, tokens, layers=[int(layer)])
assert np.abs(maps.relevance[0] - relevance).max() < 1e-4
assert np.isclose(w, np.exp(weights["log_window"][head]) + 1)
assert np.isclose(r, 1 / (1 + np.exp(-weights["logit_width"][head])))

# %% [markdown]
# The same tile as pictures: similarity of all pairs, what trim leaves, the mask, and their product.
# (White is exactly zero.)

# %%
position = np.arange(len(text))
distance = position[:, None] - position
similarity = query[:, head] @ key[:, head].T
panels = {
    "similarity s": np.where(distance >= 0, similarity, np.nan),
    "trim α": np.where(distance >= 0, trim(similarity, r), np.nan),
    "softmask m": softmask(distance, w),
    "relevance α m": relevance[head],
}
figure, axes = plt.subplots(1, 4, figsize=(11, 3), layout="constrained", sharey=True)
for axis, (title, values) in zip(axes, panels.items(), strict=True):
    signed = title.startswith("sim")
    colours = plt.get_cmap("RdBu_r" if signed else "viridis_r").with_extremes(under="white")
    low = -1 if signed else 1e-9
    image = axis.imshow(values, cmap=colours, vmin=low, vmax=1)
    axis.set(title=title, xlabel="key", xticks=[0, 20, 40, 60], yticks=[0, 20, 40, 60])
    figure.colorbar(image, ax=axis, shrink=0.6)
axes[0].set_ylabel("query")
plt.show()

# %% [markdown]
# ## A query that accepts nothing
#
# If no key passes the test, the tile adds exactly nothing, and no gradient flows through it.

# %%
silent = (relevance == 0).all(-1)
print("queries that accept no key, by tile of this layer:", silent.sum(-1), "of", len(text))
assert (tiles["pre_tanhnorm"][layer, 0][silent.T] == 0).all()

alone = jnp.array([[1.0, 0.0]]).reshape(1, 1, 1, 2)
away = -alone
one_value = jnp.ones((1, 1, 1, 1))


def output(key):
    return screening(alone, key, one_value, jnp.array([8.0]), jnp.array([0.9])).sum()


for name, key_vector in {"the key itself": alone, "the opposite key": away}.items():
    value, gradient = jax.value_and_grad(output)(key_vector)
    print(f"{name}: h = {value:g}, gradient {np.asarray(gradient).ravel().tolist()}")
assert output(away) == 0
assert not jax.grad(output)(away).any()

# %% [markdown]
# Softmax has no such case: whatever the keys are, the weights add up to one.

# %%
scores = query[:, head] @ key[:, head].T
causal = np.where(distance >= 0, np.exp(scores), 0)
attention = causal / causal.sum(-1, keepdims=True)
print("softmax, sum over keys: from", attention.sum(-1).min(), "to", attention.sum(-1).max())
sums = relevance[head].sum(-1)
print(f"screening, sum over keys: from {sums.min():.2f} to {sums.max():.2f}")

# %% [markdown]
# ## All tiles
#
# Windows started between 2 and 257 in every layer, and all widths at one half; this is what
# training made of them.

# %%
counts = mj.inspect.acceptance(model, params, tokens)
print(
    f"{counts.share_accepted().mean():.0%} of the pairs in a tile's window are accepted, on average"
)
print(f"{(counts.share_silent() == 1).sum()} of {share.size} tiles accept nothing in this text")
mj.inspect.plot_windows_widths(counts.window, counts.width)
