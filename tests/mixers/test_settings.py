"""What a mixer adds to its op, by hand."""

import jax
import jax.numpy as jnp
import numpy as np

from multiscreen_jax.mixers import delta_net
from multiscreen_jax.mixers.mixer import Context
from multiscreen_jax.models import DeltaNetConfig, RetNetConfig

T, D, H, K, V = 9, 8, 2, 6, 5
SHAPE = {"vocab_size": 7, "model_dim": D, "num_layers": 1, "num_heads": H, "key_dim": K}
X = jax.random.normal(jax.random.key(0), (1, T, D))
POSITIONS = jnp.arange(T)[None] + 3  # of a document that began before


def silu(x):
    return x / (1 + np.exp(-x))


def test_retention_turns_queries_and_keys():
    config = RetNetConfig(**SHAPE, value_dim=V, initializer_range=1.0)
    mixer = config.mixer().build(config.common)
    context = Context(None, POSITIONS, mixer.prepare(POSITIONS, X.dtype))
    params = mixer.init(jax.random.key(1), X, None, context)["params"]
    got = mixer.apply({"params": params}, X, None, context).y

    weights = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    x, positions = np.asarray(X[0], np.float64), np.asarray(POSITIONS[0])
    q, k, v, gate = (
        np.einsum("td,dhc->thc", x, weights[name]) for name in ("query", "key", "value", "gate")
    )
    angle = positions[:, None] * config.rope_theta ** (-np.arange(0, K, 2) / K)
    turn = np.exp(1j * angle)[:, None]
    q, k = ((y[..., : K // 2] + 1j * y[..., K // 2 :]) * turn for y in (q, k))
    y = np.zeros((T, H, V))
    for t in range(T):
        for s in range(t + 1):
            similarity = np.sum(q[t] * k[s].conj(), axis=-1).real / np.sqrt(K)
            fading = (1 - 2.0 ** (-5 - np.arange(H))) ** (t - s)
            y[t] += (similarity * fading)[:, None] * v[s]
    y /= np.sqrt(np.mean(y**2, axis=-1, keepdims=True) + config.norm_eps)
    y *= weights["output_norm"]["scale"] * silu(gate)
    want = np.einsum("thv,hvd->td", y, weights["output"])
    np.testing.assert_allclose(got[0], want, rtol=1e-4, atol=1e-5)


def test_a_delta_net_by_hand():
    config = DeltaNetConfig(**SHAPE, value_dim=V, initializer_range=1.0, output_gate=True)
    mixer, context = config.mixer().build(config.common), Context(None, POSITIONS)
    params = mixer.init(jax.random.key(1), X, None, context)["params"]
    got = mixer.apply({"params": params}, X, None, context).y

    weights = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    x = np.asarray(X[0], np.float64)

    def convolved(name):
        y = np.einsum("td,dhc->thc", x, weights[name])
        before = np.concatenate([np.zeros((config.conv_width - 1, *y.shape[1:])), y])
        kernel = weights[f"{name}_conv"]["kernel"]
        return silu(sum(tap * before[i : i + T] for i, tap in enumerate(kernel)))

    q, k, v = map(convolved, ("query", "key", "value"))
    q, k = (y / np.sqrt(np.sum(y**2, axis=-1, keepdims=True) + 1e-6) for y in (q, k))
    beta = 1 / (1 + np.exp(-np.einsum("td,dh->th", x, weights["beta"])))
    state, y = np.zeros((H, K, V)), np.zeros((T, H, V))
    for t in range(T):
        new = beta[t, :, None] * (v[t] - np.einsum("hk,hkv->hv", k[t], state))
        state = state + k[t][..., None] * new[:, None]
        y[t] = np.einsum("hk,hkv->hv", q[t], state) / np.sqrt(K)
    y /= np.sqrt(np.mean(y**2, axis=-1, keepdims=True) + config.norm_eps)
    y *= weights["output_norm"]["scale"] * silu(np.einsum("td,dhc->thc", x, weights["gate"]))
    want = np.einsum("thv,hvd->td", y, weights["output"])
    np.testing.assert_allclose(got[0], want, rtol=1e-4, atol=1e-5)


def test_negative_eigenvalues_double_beta(monkeypatch):
    seen = []

    def spy(q, k, v, beta, **how):
        seen.append(beta)
        return v, None

    monkeypatch.setattr(delta_net, "delta_rule", spy)
    for doubled in (False, True):
        config = DeltaNetConfig(**SHAPE, value_dim=V, negative_eigenvalues=doubled)
        context = Context(None, POSITIONS)
        config.mixer().build(config.common).init(jax.random.key(1), X, None, context)
    np.testing.assert_array_equal(seen[1], 2 * seen[0])
