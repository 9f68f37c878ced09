"""Our Multiscreen against the PyPI package multiscreen 0.2.0, live, on random weights."""

import dataclasses
import importlib.metadata
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from multiscreen_jax import convert, losses
from multiscreen_jax.models.multiscreen import Multiscreen, MultiscreenConfig
from tests.marks import slow_unless
from tests.torch_equivalence.closeness import check_gradients, check_logits, check_loss

torch = pytest.importorskip("torch")
package = pytest.importorskip("multiscreen")
if importlib.metadata.version("multiscreen") != "0.2.0":
    pytest.skip("multiscreen is not 0.2.0: other releases differ", allow_module_level=True)

pytestmark = pytest.mark.torch
SOURCE = "multiscreen/lucidrains"
LENGTH, TRAINED = 67, 40
CONFIG = MultiscreenConfig(
    vocab_size=53,
    model_dim=20,
    num_layers=3,
    num_heads=5,
    key_dim=6,
    value_dim=12,
    window_threshold=24.0,
    precision="highest",
)
# On both sides of the threshold, of the trained length and of the sequence.
WINDOWS = [[2.1, 5.5, 23.0, 25.7, 90.0], [3.3, 11.2, 24.5, 39.2, 41.3], [1.05, 8.4, 17, 55, 300]]


def random_model(seed: int = 0):
    """The package's model with every parameter random and most queries accepting something."""
    torch.manual_seed(seed)
    c = CONFIG
    model = package.MultiScreen(
        num_tokens=c.vocab_size,
        dim=c.model_dim,
        depth=c.num_layers,
        heads=c.num_heads,
        dim_keys=c.key_dim,
        dim_values=c.value_dim,
        window_threshold=c.window_threshold,
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 0.3 if parameter.ndim > 1 else 0.5
            parameter.normal_(0, scale)
            if "learned_window" in name:
                windows = torch.tensor(WINDOWS[int(name.split(".")[1])])
                parameter.copy_((windows - 1).log())
            if "scale_unembed" in name:
                parameter.fill_(math.log(3.0))
    return model


def random_tokens(length: int = LENGTH, batch: int = 2) -> np.ndarray:
    return np.random.default_rng(1).integers(0, CONFIG.vocab_size, (batch, length))


def torch_logits(model, tokens) -> np.ndarray:
    with torch.no_grad():
        return model(torch.from_numpy(tokens)).numpy()


def our_logits(params, tokens, config=CONFIG) -> np.ndarray:
    apply = jax.jit(Multiscreen(config).apply)
    return np.asarray(apply({"params": params}, jnp.asarray(tokens, jnp.int32)).logits)


@pytest.mark.parametrize("implementation", slow_unless(("chunked",), ("reference", "chunked")))
def test_logits_loss_and_every_gradient_in_train_mode(implementation):
    torch_model = random_model().train()
    params = convert.from_torch(SOURCE, torch_model.state_dict(), CONFIG)
    config = dataclasses.replace(CONFIG, implementation=implementation)
    tokens = random_tokens(LENGTH + 1)
    logits = our_logits(params, tokens[:, :-1], config)
    check_logits(logits, torch_logits(torch_model, tokens[:, :-1]), "logits")

    torch_loss = torch_model(torch.from_numpy(tokens), return_loss=True)
    torch_loss.backward()
    batch = {"tokens": jnp.asarray(tokens, jnp.int32)}
    loss, gradients = jax.jit(
        jax.value_and_grad(lambda p: losses.next_token(Multiscreen(config), p, batch))
    )(params)
    check_loss(loss, torch_loss.item())
    theirs = {name: p.grad for name, p in torch_model.named_parameters()}
    check_gradients(gradients, convert.from_torch(SOURCE, theirs, CONFIG), "gradients")
    back = convert.to_torch(SOURCE, gradients, CONFIG)
    theirs = {name: gradient.numpy() for name, gradient in theirs.items()}
    check_gradients({name: back[name] for name in theirs}, theirs, "gradients, converted back")


def test_eval_mode_is_the_inference_rule():
    """Windows beyond the length that the package tracked while training become infinite."""
    torch_model = random_model().train()
    torch_logits(torch_model, random_tokens(TRAINED))
    torch_model.eval()
    state = torch_model.state_dict()
    assert convert.trained_length(SOURCE, state) == TRAINED
    params = convert.from_torch(SOURCE, state, CONFIG)
    tokens = random_tokens()
    want = torch_logits(torch_model, tokens)
    config = dataclasses.replace(CONFIG, infinite_windows=True, trained_length=TRAINED)
    check_logits(our_logits(params, tokens, config), want, "logits, infinite windows")
    # the rule matters here, or the comparison above would show nothing
    assert np.abs(our_logits(params, tokens) - want).max() > 1e-2


def test_eval_mode_without_a_tracked_length_keeps_its_windows():
    torch_model = random_model().eval()
    state = torch_model.state_dict()
    assert convert.trained_length(SOURCE, state) is None
    params = convert.from_torch(SOURCE, state, CONFIG)
    tokens = random_tokens()
    check_logits(our_logits(params, tokens), torch_logits(torch_model, tokens), "logits")


def test_our_initial_weights_in_their_model():
    """The other direction, strictly loaded, at our initialisation."""
    config = dataclasses.replace(CONFIG, trained_length=TRAINED)
    tokens = random_tokens()
    variables = jax.jit(Multiscreen(config).init)(jax.random.key(3), jnp.asarray(tokens, jnp.int32))
    named = convert.to_torch(SOURCE, variables["params"], config)
    torch_model = random_model().eval()
    torch_model.load_state_dict({name: torch.from_numpy(x) for name, x in named.items()})
    assert torch_model.layers[0].soft_mask.max_seq_len.item() == TRAINED
    torch_model.train()
    ours = our_logits(variables["params"], tokens, config)
    check_logits(ours, torch_logits(torch_model, tokens), "logits at initialisation")


def test_their_initial_values_are_ours():
    """Everything that is not random starts from the same number."""
    c = CONFIG
    torch_model = package.MultiScreen(
        num_tokens=c.vocab_size,
        dim=c.model_dim,
        depth=c.num_layers,
        heads=c.num_heads,
        dim_keys=c.key_dim,
        dim_values=c.value_dim,
        window_threshold=c.window_threshold,
    )
    theirs = convert.from_torch(SOURCE, torch_model.state_dict(), c)
    ours = jax.jit(Multiscreen(c).init)(jax.random.key(0), jnp.zeros((1, 8), jnp.int32))["params"]
    for name in ("log_window", "logit_width", "log_output_scale"):
        np.testing.assert_allclose(
            ours["layers"]["tiles"][name], theirs["layers"]["tiles"][name], atol=1e-6, err_msg=name
        )
    for name in ("log_input_scale", "log_output_scale"):
        np.testing.assert_allclose(
            ours["embedding"][name], theirs["embedding"][name], atol=1e-6, err_msg=name
        )
