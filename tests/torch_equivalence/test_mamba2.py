"""Our Mamba-2 against transformers' Mamba2ForCausalLM, whose names are those of mamba2/fla."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multiscreen_jax import convert, losses
from multiscreen_jax.models import Mamba2, Mamba2Config
from tests.torch_equivalence.closeness import check_gradients, check_logits, check_loss

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.torch
SOURCE = "mamba2/fla"
LENGTH = 45


@pytest.fixture(scope="module")
def pair():
    """A Mamba-2 with random weights, and our config of the same model. (One group: with several,
    transformers takes the mean of the gated norm over all of them.)"""
    config = Mamba2Config(
        vocab_size=61, model_dim=24, num_layers=3, num_heads=6, key_dim=10, value_dim=8,
        precision="highest",
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.Mamba2ForCausalLM(
        transformers.Mamba2Config(
            vocab_size=config.vocab_size, hidden_size=config.model_dim, expand=2,
            num_hidden_layers=config.num_layers, num_heads=config.num_heads,
            head_dim=config.value_dim, state_size=config.key_dim, n_groups=1,
            layer_norm_epsilon=config.norm_eps, chunk_size=16, tie_word_embeddings=False,
        )
    )  # fmt: skip
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.3)
            elif not name.endswith(("A_log", "dt_bias")):
                parameter.uniform_(0.5, 1.5)
    return model, config


@pytest.mark.slow
def test_logits_loss_and_every_gradient(pair):
    torch_model, config = pair
    params = convert.from_torch(SOURCE, torch_model.state_dict(), config)
    tokens = np.random.default_rng(1).integers(0, config.vocab_size, (2, LENGTH + 1))
    inputs = torch.from_numpy(tokens)
    model, ids = Mamba2(config), jnp.asarray(tokens, jnp.int32)

    torch_logits = torch_model(inputs[:, :-1]).logits
    torch_loss = torch.nn.functional.cross_entropy(
        torch_logits.flatten(0, 1), inputs[:, 1:].flatten()
    )
    torch_loss.backward()

    @jax.jit
    def ours(params):
        logits = model.apply({"params": params}, ids[:, :-1]).logits
        loss = jax.value_and_grad(lambda p: losses.next_token(model, p, {"tokens": ids}))
        return logits, *loss(params)

    logits, loss, gradients = ours(params)
    check_logits(logits, torch_logits.detach().numpy(), "logits")
    check_loss(loss, torch_loss.item())
    named = {name: p.grad for name, p in torch_model.named_parameters()}
    check_gradients(gradients, convert.from_torch(SOURCE, named, config), "gradients")


@pytest.mark.slow
def test_prefill_and_steps_are_its_full_forward(pair):
    torch_model, config = pair
    params = convert.from_torch(SOURCE, torch_model.state_dict(), config)
    tokens = np.random.default_rng(2).integers(0, config.vocab_size, (2, 20))
    with torch.no_grad():
        want = torch_model(torch.from_numpy(tokens)).logits.numpy()
    model = Mamba2(config)
    cache, got = model.init_cache(params, 2, 20), []
    apply = jax.jit(lambda t, cache: model.apply({"params": params}, t, cache=cache))
    for at, size in ((0, 17), (17, 1), (18, 1), (19, 1)):
        out = apply(jnp.asarray(tokens[:, at : at + size], jnp.int32), cache)
        cache, got = out.cache, [*got, np.asarray(out.logits)]
    check_logits(np.concatenate(got, 1), want, "cached logits")
