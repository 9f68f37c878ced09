"""Which implementation of an op runs, and whether kernels are compiled or interpreted.

`implementation` is a name, a sequence of names tried in order, or None for the default. A name
never falls back: if it cannot run here it raises `NotImplementedError` with the reason.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Any

import jax

from pallas_kernels.common.pallas import BACKENDS, load

IMPLEMENTATIONS = ("reference", "chunked", "pallas_tpu", "pallas_gpu")
# The kernels first; what they do not support (an odd key dimension, say) the XLA form does.
_DEFAULTS = {"tpu": ("pallas_tpu", "chunked"), "gpu": ("pallas_gpu", "chunked")}
_KERNEL_PLATFORMS = {"pallas_tpu": "tpu", "pallas_gpu": "gpu"}

# Part of jit's cache key: a function traced outside the context is traced anew inside it.
_interpretation = jax.make_user_context(default_value=False)
_choices: ContextVar[dict[str, set[str]] | None] = ContextVar("choices", default=None)


def interpret_kernels(params: Any = True) -> AbstractContextManager[None]:
    """Run "pallas_tpu" and "pallas_gpu" by interpretation, for tests and debugging on a CPU.

    Args:
        params: True, or `pltpu.InterpretParams(...)`, which simulates a TPU's memories and finds
            races (TPU kernels only).
    """
    return _interpretation(params)


def interpretation() -> Any:
    """What to pass to `pallas_call(interpret=...)`."""
    return _interpretation.value


def platform() -> str:
    """Where an op called now will run, "cpu", "gpu" or "tpu": the mesh's devices if a mesh is set,
    else the default device."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    if device is None:
        device = jax.config.jax_default_device  # pyright: ignore[reportAttributeAccessIssue]
    name = jax.default_backend() if device is None else getattr(device, "platform", device)
    return "gpu" if name in ("cuda", "rocm") else name


@contextmanager
def record_choices() -> Iterator[dict[str, set[str]]]:
    """The implementations that ran, op by op, in functions called or traced in this context."""
    choices: dict[str, set[str]] = {}
    token = _choices.set(choices)
    try:
        yield choices
    finally:
        _choices.reset(token)


def check_implementation(implementation: str | Sequence[str] | None) -> None:
    """Raise ValueError for a name that no op knows, and for what is no name or names."""
    if implementation is None:
        return
    names = (implementation,) if isinstance(implementation, str) else implementation
    if not isinstance(names, Sequence) or not names:
        names = (implementation,)  # to be refused as a whole
    for name in names:
        if name not in IMPLEMENTATIONS:
            raise ValueError(
                f"implementation must be None or among {IMPLEMENTATIONS}, got {name!r}"
            )


def candidates(implementation: str | Sequence[str] | None) -> tuple[str, ...]:
    """The names to try, in order; None becomes the kernel of this platform and "chunked"."""
    check_implementation(implementation)
    if implementation is None:
        return _DEFAULTS.get(platform(), ("chunked",))
    return (implementation,) if isinstance(implementation, str) else tuple(implementation)


def run(
    op: str,
    available: Mapping[str, Callable[..., Any]],
    implementation: str | Sequence[str] | None,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Call the first implementation that supports these arguments.

    Args:
        op: the op's name, for messages.
        available: name -> function. A function says that it does not support its arguments by
            raising NotImplementedError; only that moves on to the next name of a sequence.
        implementation: as above; None is the kernel on a TPU or GPU, and "chunked" where there is
            none or it does not support the arguments.
    """
    reasons = []
    for name in candidates(implementation):
        try:
            if name not in available:
                raise NotImplementedError(f"only {', '.join(available)} exist")
            _check_kernels(name)
            result = available[name](*args, **kwargs)
        except NotImplementedError as error:
            reasons.append(f"{name}: {error}")
        else:
            if (choices := _choices.get()) is not None:
                choices.setdefault(op, set()).add(name)
            return result
    raise NotImplementedError(f"{op} has no usable implementation; {'; '.join(reasons)}")


def _check_kernels(name: str) -> None:
    """Raises unless kernels of this name can be built, and can run here."""
    if name in BACKENDS:
        load(BACKENDS[name])
    needed = _KERNEL_PLATFORMS.get(name)
    if needed not in (None, platform()) and not interpretation():
        raise NotImplementedError(
            f"compiled for a {needed.upper()}, and this is a {platform().upper()}; "
            "pallas_kernels.interpret_kernels() runs it anywhere, slowly"
        )
