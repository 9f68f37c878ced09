"""Recorded runs of other implementations against the public path: weights in, numbers out."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import multiscreen_jax as mj
from multiscreen_jax import convert
from multiscreen_jax.convert.plan import tensors_of
from multiscreen_jax.convert.sources import table_named
from multiscreen_jax.layers.positions import document_positions
from multiscreen_jax.mixers import Context
from tests.goldens import golden_path
from tests.goldens.systems import config_of, files, implemented, is_here, pending, system_of

# dtype -> limits of logits and outputs, of the loss, of each gradient (relative), of decoding.
# The references' own float32 noise is a third to a tenth of it; gradients are stored rounded.
LIMITS = {"float64": (1e-9, 1e-9, 3e-5, 1e-4), "float32": (1e-4, 1e-5, 1e-4, 1e-4)}
SMALL = 5e-5  # of a gradient, absolute


def cases():
    """Float64 for what lies here, one of each system; all else repeats what it shows."""
    known = implemented()
    for name in files():
        if system_of(name) in known:
            here = is_here(name)
            yield pytest.param(name, "float64", marks=() if here else pytest.mark.exhaustive)
            rest = pytest.mark.slow if here else pytest.mark.exhaustive
            yield pytest.param(name, "float32", marks=rest)


@pytest.mark.parametrize(("name", "dtype"), list(cases()))
def test_golden(name, dtype):
    source = implemented()[system_of(name)]
    with jax.enable_x64(dtype == "float64"), np.load(golden_path(name)) as file:
        check = check_model if "input_ids" in file.files else check_layer
        check(file, source, config_of(name), dtype)


def test_a_system_is_implemented_or_pending():
    known, waiting = set(implemented()), pending()
    assert len(waiting) == len(set(waiting))
    assert waiting == sorted(waiting)
    assert not known & set(waiting), "implemented: take it out of pending.txt"
    found = {system_of(name) for name in files()}
    assert found <= known | set(waiting), "neither implemented nor in pending.txt"


def part(file, prefix):
    return {key.removeprefix(prefix): file[key] for key in file.files if key.startswith(prefix)}


def assert_close(got, want, limit, what):
    error = np.max(np.abs(np.asarray(got, np.float64) - want))
    assert error <= limit, f"{what}: off by {error:.1e}, allowed {limit:.0e}"


def assert_gradients(got, want, limit):
    assert got.keys() >= want.keys()
    for name, wanted in want.items():
        error = np.asarray(got[name], np.float64) - wanted
        relative = np.linalg.norm(error) / max(np.linalg.norm(wanted), 1e-30)
        assert relative <= limit or np.max(np.abs(error)) <= SMALL, f"{name}: {relative:.1e}"


def check_model(file, source, settings, dtype):
    """Logits, the loss, all gradients, and decoding with a cache."""
    how = {"dtype": dtype, "param_dtype": dtype, "precision": "highest"}
    config = convert.read_config(source, settings, **how)
    model = mj.models.build(config)
    params = convert.from_torch(source, part(file, "param/"), config)
    tokens = jnp.asarray(file["input_ids"], jnp.int32)
    exact = "_f64" if dtype == "float64" else ""
    of_logits, of_loss, of_gradients, of_decoding = LIMITS[dtype]

    logits = model.apply({"params": params}, tokens).logits
    assert_close(logits, file[f"logits{exact}"], of_logits, "logits")
    loss, gradients = jax.jit(
        jax.value_and_grad(lambda p: mj.losses.next_token(model, p, {"tokens": tokens}))
    )(params)
    assert_close(loss, file[f"loss{exact}"], of_loss, "loss")
    named = convert.to_torch(source, gradients, config)
    assert_gradients(named, part(file, "grad/"), of_gradients)

    cut, row = int(file["decode/cut"]), tokens[:1]
    step = jax.jit(lambda tokens, cache: model.apply({"params": params}, tokens, cache=cache))
    out = step(row[:, :cut], model.init_cache(params, 1, row.shape[1]))
    decoded = [out.logits]
    for t in range(cut, row.shape[1]):
        out = step(row[:, t : t + 1], out.cache)
        decoded.append(out.logits)
    decoded = np.concatenate(decoded, axis=1)
    assert_close(decoded[0], file["decode/logits"], of_decoding, "decoding")
    assert_close(decoded, logits[:1], of_logits, "decoding against the whole")


def check_layer(file, source, settings, dtype):
    """One mixer alone: its output, and the gradients of its weights and its input."""
    how = {"dtype": dtype, "param_dtype": dtype, "precision": "highest"}
    config = convert.read_config(source, settings, vocab_size=2, num_layers=1, **how)
    weights = part(file, "param/")
    whole = (tensor.name for tensor in tensors_of(table_named(source), config))
    some = next(iter(weights))
    prefix = next(name.removesuffix(some) for name in whole if name.endswith(f".{some}"))
    take = functools.partial(convert.module_from_torch, source, config=config, prefix=prefix)
    layer = config.stages()[0].pattern[0]
    mixer = layer.build_mixer(config.common, parent=None)
    x, cotangent = (jnp.asarray(file[name], dtype) for name in ("in/x", "cotangent"))
    positions = document_positions(None, *x.shape[:2])
    context = Context(None, positions, mixer.prepare(positions, x.dtype))

    @jax.jit
    def run(params, x):
        def weighted(params, x):
            y = mixer.apply({"params": params[layer.mixer.tree_name]}, x, None, context).y
            return jnp.sum(y * cotangent), y

        (_, y), gradients = jax.value_and_grad(weighted, (0, 1), has_aux=True)(params, x)
        return y, gradients

    y, (dparams, dx) = run(take(weights), x)
    of_outputs, _, of_gradients, _ = LIMITS[dtype]
    assert_close(y, file["out_f64" if dtype == "float64" else "out"], of_outputs, "out")
    assert_gradients({"x": dx}, part(file, "grad_in/"), of_gradients)
    # Conversion is linear: recorded gradients become ours as weights do.
    flat = (
        {jax.tree_util.keystr(path): x for path, x in jax.tree_util.tree_leaves_with_path(tree)}
        for tree in (dparams, take(part(file, "grad/")))
    )
    assert_gradients(*flat, of_gradients)
