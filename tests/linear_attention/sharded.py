"""`python -m tests.linear_attention.sharded`: the ops on eight devices and on one.

Ends with an error unless values and all gradients agree under every mesh, and prints what the
compiled programs exchange between devices.
"""

import re

import jax
import numpy as np

from multiscreen_jax.sharding import make_mesh
from tests.common.shares import check_divided
from tests.linear_attention.cases import assert_close, make_case, run

# data, fsdp, seq, model. Rows and heads are 4: eight do not divide either of them.
MESHES = [(2, 2, 1, 2), (1, 2, 1, 4), (1, 1, 1, 8)]
_COLLECTIVE = r" (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)\("


def main() -> None:
    ids = np.int32([[1] * 20 + [2] * 30 + [0] * 5 + [3] * 15] * 4)
    for op, groups, segments in (
        ("ssd", 1, ids),
        ("normalised", 4, None),
        ("gated_delta_rule", 2, ids),
    ):
        case = make_case(op, 70, batch=4, groups=groups)
        wanted = jax.device_get(run(op, case, segments))
        for sizes in MESHES:
            with jax.set_mesh(make_mesh(*sizes)):
                text = run.lower(op, case, segments).compile().as_text()
                got = run(op, case, segments)
            print(op, groups, sizes, *sorted(set(re.findall(_COLLECTIVE, text))))
            check_divided(got["y"], sizes, groups)
            assert_close(jax.device_get(got), wanted, what=f"{op} {sizes}")


if __name__ == "__main__":
    main()
