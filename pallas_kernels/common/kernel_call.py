"""How every kernel is called."""

from collections.abc import Callable
from typing import Any

import jax

from pallas_kernels.common.dispatch import interpretation
from pallas_kernels.common.pallas import pl


def kernel_call(kernel: Callable[..., None], **settings: Any) -> Callable[..., Any]:
    """`pl.pallas_call(kernel, **settings)` as `interpretation()` says, traced in 32 bits.

    With JAX_ENABLE_X64 Python's integers are int64, in kernels, loops and index maps alike.
    Beside the int32 of a chip `lax` refuses them, and no chip's compiler takes them.
    """
    call = pl.pallas_call(kernel, **{"interpret": interpretation(), **settings})

    def run(*operands: Any) -> Any:
        with jax.enable_x64(False):
            return call(*operands)

    return run
