# %% [markdown]
# # Swap the mixer
#
# Five architectures on the same text: the same batches in the same order, about the same number of
# parameters, the same steps. What differs is how tokens are mixed. Each learning rate is the best
# of three, a factor of two apart, in trials of about this size; for the Transformer it is the
# smallest that was tried, for the last two architectures the largest.
#
# What this is **not**: a benchmark. Models of 0.1 million parameters, a training of seconds, one
# seed. It says who is quick at the start, not who is good in the end; the README has runs that are
# more than twenty times as long.

# %%
import time

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import multiscreen_jax as mj

plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "figure.dpi": 80})
STEPS, WARMUP, LENGTH, ROWS = 180, 16, 64, 8

shape = {"vocab_size": 256, "model_dim": 48, "num_layers": 3, "tie_embeddings": True}
state = {**shape, "num_heads": 2, "key_dim": 16, "value_dim": 32, "feed_forward_dim": 96}
CONTENDERS = {  # config, and peak learning rate
    "Multiscreen": (
        mj.models.config_for("multiscreen-tiny", model_dim=48, num_layers=3, num_heads=5),
        2**-6,
    ),
    "Transformer": (mj.models.TransformerConfig(**shape, num_heads=4), 2e-3),
    "RetNet": (mj.models.RetNetConfig(**state), 8e-3),
    "Gated DeltaNet": (mj.models.GatedDeltaNetConfig(**state), 1.6e-2),
    "Mamba-2": (
        mj.models.config_for(
            "mamba2-mlp-tiny", **shape, num_heads=3, key_dim=16, value_dim=32, feed_forward_dim=64
        ),
        1.6e-2,
    ),
}
for name, (config, rate) in CONTENDERS.items():
    print(f"{name:16s}{config.parameter_count():8,} parameters, learning rate {rate:g}")

# %% [markdown]
# One loop for all: Adam, a warm-up, then a line down to zero. Multiscreen is trained as its paper
# does, the others with a decay of 0.1 and gradients clipped at one.

# %%
data = mj.data.DataConfig(source="sotu", tokenizer="bytes", sequence_length=LENGTH, batch_size=ROWS)
stream = mj.data.open_pipeline(data, "train")
valid = mj.data.open_pipeline(data, "valid")
batches = [{"tokens": jnp.asarray(stream.batch(n)["tokens"])} for n in range(STEPS)]
schedule = optax.join_schedules(
    [optax.linear_schedule(0, 1, WARMUP), optax.linear_schedule(1, 0, STEPS - WARMUP)], [WARMUP]
)


def directions(config):
    """Steps of size one, before the learning rate."""
    adam = optax.scale_by_adam(b2=0.95)
    if isinstance(config, mj.models.MultiscreenConfig):
        return adam
    return optax.chain(optax.clip_by_global_norm(1.0), adam, optax.add_decayed_weights(0.1))


def train(config, rate):
    """(model, trained parameters, bits per byte at every step, seconds of a step)."""
    model, optimizer = mj.models.build(config), directions(config)

    @jax.jit
    def step(params, state, batch, rate):
        loss, gradients = jax.value_and_grad(mj.losses.next_token, 1)(model, params, batch)
        updates, state = optimizer.update(gradients, state, params)
        return jax.tree.map(lambda p, u: p - rate * u, params, updates), state, loss

    params = jax.jit(model.init)(jax.random.key(0), batches[0]["tokens"])["params"]
    state, losses, times = optimizer.init(params), [], []
    for number, batch in enumerate(batches):
        clock = time.perf_counter()
        params, state, loss = step(params, state, batch, rate * schedule(number))
        losses.append(float(loss) / np.log(2))
        times.append(time.perf_counter() - clock)
    return model, params, np.array(losses), np.median(times)


trained = {name: train(config, rate) for name, (config, rate) in CONTENDERS.items()}

# %% [markdown]
# **The result**: bits per byte of validation text that no model has seen. Byte frequencies alone
# give the number in the last line. (Milliseconds are of this machine, and of sizes that no one
# would train.)

# %%
print(f"{'':16s}bits per byte   ms a step")
for name, (model, params, _, seconds) in trained.items():
    found = mj.evaluation.evaluate(model, params, valid, max_batches=12)
    print(f"{name:16s}{found['bits_per_byte']:13.3f}{1e3 * seconds:12.0f}")
print(f"{'(frequencies)':16s}{valid.unigram_bits_per_byte():13.3f}")
print(f"on {found['bytes']:,} bytes")

# %%
plt.figure(figsize=(6, 3))
for name, (_, _, losses, _) in trained.items():
    smooth = np.convolve(losses, np.ones(8) / 8, "valid")
    plt.plot(np.arange(len(smooth)) + 7, smooth, label=name)
plt.axhline(valid.unigram_bits_per_byte(), color="#7a808c", linestyle=":")
plt.xlabel("step")
plt.ylabel("bits per byte (mean of 8 steps)")
plt.ylim(2.5, 6)
plt.legend(frameon=False)
plt.show()

# %% [markdown]
# The attention of the Transformer stays near the byte frequencies (dotted) for many steps before it
# starts. How long that takes, not what it can learn, decides its place in so short a training.
#
# **What context costs** in decoding: bytes of cache, per row, that hold so many tokens.

# %%
contexts = (256, 4096, 65536)
print(f"{'':16s}" + "".join(f"{context:13,}" for context in contexts))
for name, (model, params, _, _) in trained.items():
    caches = [model.init_cache(params, 1, context) for context in contexts]
    sizes = [sum(x.nbytes for x in jax.tree.leaves(cache)) for cache in caches]
    print(f"{name:16s}" + "".join(f"{size:13,}" for size in sizes))
