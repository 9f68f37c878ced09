"""Our Transformer against transformers' LlamaForCausalLM, live, on random weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multiscreen_jax import convert, losses
from multiscreen_jax.models.transformer import Transformer, TransformerConfig
from tests.marks import slow_unless
from tests.torch_equivalence.closeness import check_gradients, check_logits, check_loss

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.torch
SOURCE = "transformer/hf-llama"
LENGTH = 45
CASES = {
    "multi-head, tied": {},
    "grouped, untied": {"num_kv_heads": 2, "tie_embeddings": False},
    "one kv head, wide heads, interpolated": {
        "num_kv_heads": 1,
        "head_dim": 10,
        "rope_factor": 4.0,
        "rope_theta": 500.0,
        "norm_eps": 1e-3,
    },
}


def pair(**changes):
    """A Llama with random weights, and our config of the same model."""
    config = TransformerConfig(
        **{
            "vocab_size": 61,
            "model_dim": 24,
            "num_layers": 3,
            "num_heads": 4,
            "feed_forward_dim": 40,
            "final_norm_gain": True,
            "precision": "highest",
            **changes,
        }
    )
    rope = {"rope_type": "default", "rope_theta": config.rope_theta}
    if config.rope_factor != 1:
        rope |= {"rope_type": "linear", "factor": config.rope_factor}
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.model_dim,
            intermediate_size=config.feed_forward_dim,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=changes.get("num_kv_heads", config.num_heads),
            head_dim=changes.get("head_dim", config.model_dim // config.num_heads),
            rms_norm_eps=config.norm_eps,
            tie_word_embeddings=config.tie_embeddings,
            rope_parameters=rope,
            attn_implementation="eager",
        )
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.3)
            else:
                parameter.uniform_(0.5, 1.5)
    return model, config


@pytest.mark.parametrize("case", slow_unless(list(CASES)[:1], CASES))
def test_logits_loss_and_every_gradient(case):
    torch_model, config = pair(**CASES[case])
    params = convert.from_torch(SOURCE, torch_model.state_dict(), config)
    tokens = np.random.default_rng(1).integers(0, config.vocab_size, (2, LENGTH + 1))
    inputs = torch.from_numpy(tokens)
    model, ids = Transformer(config), jnp.asarray(tokens, jnp.int32)

    torch_logits = torch_model(inputs[:, :-1]).logits
    torch_loss = torch_model(inputs, labels=inputs).loss
    torch_loss.backward()

    @jax.jit
    def ours(params):
        logits = model.apply({"params": params}, ids[:, :-1]).logits
        loss = jax.value_and_grad(lambda p: losses.next_token(model, p, {"tokens": ids}))
        return logits, *loss(params)

    logits, loss, gradients = ours(params)
    check_logits(logits, torch_logits.detach().numpy(), f"{case}: logits")
    check_loss(loss, torch_loss.item())
    theirs = {name: p.grad for name, p in torch_model.named_parameters()}
    check_gradients(gradients, convert.from_torch(SOURCE, theirs, config), f"{case}: gradients")


@pytest.mark.parametrize("tied", [True, False])
def test_our_weights_load_strictly(tied):
    torch_model, config = pair(num_kv_heads=2, tie_embeddings=tied)
    named = convert.to_torch(
        SOURCE, convert.from_torch(SOURCE, torch_model.state_dict(), config), config
    )
    other, _ = pair(num_kv_heads=2, tie_embeddings=tied)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    other.load_state_dict({name: torch.from_numpy(x) for name, x in named.items()})
    for name, tensor in torch_model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


def test_without_final_gain_theirs_is_one():
    """The paper's Transformer has no gain in its last norm: Llama computes it with ones."""
    torch_model, config = pair(final_norm_gain=False)
    with torch.no_grad():
        torch_model.model.norm.weight.fill_(1.0)
    params = convert.from_torch(SOURCE, torch_model.state_dict(), config)
    assert "final_norm" not in params
    tokens = np.random.default_rng(2).integers(0, config.vocab_size, (1, 20))
    with torch.no_grad():
        want = torch_model(torch.from_numpy(tokens)).logits.numpy()
    apply = jax.jit(Transformer(config).apply)
    check_logits(apply({"params": params}, jnp.asarray(tokens, jnp.int32)).logits, want, "logits")


def test_saved_pretrained_folder_loads(tmp_path):
    """The file that save_pretrained writes, which leaves a tied head out."""
    torch_model, config = pair()
    torch_model.save_pretrained(tmp_path)
    params, _ = convert.load_safetensors(
        tmp_path / "model.safetensors", source=SOURCE, config=config
    )
    same = convert.from_torch(SOURCE, torch_model.state_dict(), config)
    jax.tree.map(np.testing.assert_array_equal, params, same)


def test_our_file_is_a_pretrained_folder(tmp_path):
    torch_model, config = pair()
    torch_model.config.save_pretrained(tmp_path)
    params = convert.from_torch(SOURCE, torch_model.state_dict(), config)
    convert.save_safetensors(tmp_path / "model.safetensors", params, config)
    again = transformers.LlamaForCausalLM.from_pretrained(tmp_path)
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, torch_model.state_dict()[name]), name
