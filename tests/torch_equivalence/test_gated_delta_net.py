"""Our Gated DeltaNet layer against the one of transformers' Qwen3-Next, live, on random weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multiscreen_jax.convert.layout import split_tensor
from multiscreen_jax.mixers.mixer import Context
from multiscreen_jax.models import GatedDeltaNetConfig
from tests.torch_equivalence.closeness import check_gradients, check_logits

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.torch
H, K, V, D, W, LENGTH = 3, 10, 14, 24, 4, 75
SIZES = {"h": H, "k": K, "v": V, "d": D, "w": W, "s": 1}


def theirs():
    from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextGatedDeltaNet

    config = transformers.Qwen3NextConfig(
        hidden_size=D, linear_num_value_heads=H, linear_num_key_heads=H, linear_key_head_dim=K,
        linear_value_head_dim=V, linear_conv_kernel_dim=W, rms_norm_eps=1e-6, num_hidden_layers=1,
        layer_types=["linear_attention"], num_attention_heads=2, num_key_value_heads=1,
        vocab_size=7, intermediate_size=8,
    )  # fmt: skip
    torch.manual_seed(0)
    layer = Qwen3NextGatedDeltaNet(config, 0)
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.3)
            elif name == "dt_bias":
                parameter.uniform_(-4, -1)
            elif name == "A_log":
                parameter.uniform_(-1, 1)
            else:
                parameter.uniform_(0.5, 1.5)
    return layer


def ours(named):
    """Their tensors (or gradients of them) as our tree."""
    named = {name: x.detach().numpy() for name, x in named.items()}

    def split(name, axes, *parts):
        return split_tensor(named[name], axes, parts, SIZES)

    q, k, v, z = split("in_proj_qkvz.weight", "(h k+k+v+v) d", "d h k", "d h k", "d h v", "d h v")
    b, a = split("in_proj_ba.weight", "(h s+s) d", "d h s", "d h s")
    kernels = split("conv1d.weight", "[h k | h k | h v] 1 w", "w h k", "w h k", "w h v")
    (output,) = split("out_proj.weight", "d (h v)", "h v d")
    tree = {
        "query": q, "key": k, "value": v, "gate": z, "beta": b[..., 0], "step": a[..., 0],
        "query_conv": {"kernel": kernels[0]}, "key_conv": {"kernel": kernels[1]},
        "value_conv": {"kernel": kernels[2]}, "log_rate": named["A_log"],
        "step_bias": named["dt_bias"], "output_norm": {"scale": named["norm.weight"]},
        "output": output,
    }  # fmt: skip
    return jax.tree.map(jnp.asarray, tree)


@pytest.mark.slow
def test_the_layer_and_every_gradient():
    layer = theirs()
    rng = np.random.default_rng(1)
    x = rng.standard_normal((2, LENGTH, D)).astype(np.float32)
    weights = rng.standard_normal((2, LENGTH, D)).astype(np.float32)
    want = layer(torch.from_numpy(x))
    (want * torch.from_numpy(weights)).sum().backward()

    config = GatedDeltaNetConfig(
        vocab_size=7, model_dim=D, num_layers=1, num_heads=H, key_dim=K, value_dim=V, conv_width=W,
        precision="highest",
    )  # fmt: skip
    mixer = config.mixer().build(config.common)
    context = Context(None, jnp.arange(LENGTH)[None])

    @jax.jit
    def run(params):
        def loss(params):
            y = mixer.apply({"params": params}, jnp.asarray(x), None, context).y
            return jnp.sum(y * weights), y

        return jax.value_and_grad(loss, has_aux=True)(params)

    (_, y), gradients = run(ours(layer.state_dict()))
    check_logits(y, want.detach().numpy(), "outputs")
    check_gradients(gradients, ours({n: p.grad for n, p in layer.named_parameters()}), "gradients")
