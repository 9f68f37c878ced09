"""Freed memory is kept only where JAX runs on the CPU."""

import importlib.util

import jax
import pytest

from multiscreen_jax.train.host_memory import runs_on_cpu


@pytest.fixture
def platforms():
    before = jax.config.jax_platforms
    yield lambda name: jax.config.update("jax_platforms", name)
    jax.config.update("jax_platforms", before)


@pytest.mark.parametrize(
    ("name", "installed", "expected"),
    [
        ("cpu", ("jax_plugins",), True),
        ("cuda,cpu", (), False),
        (None, (), True),
        (None, ("jax_plugins",), False),
        (None, ("libtpu",), False),
    ],
)
def test_the_platform_is_known_before_jax_starts(name, installed, expected, platforms, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: package in installed)
    platforms(name)
    assert runs_on_cpu() is expected
