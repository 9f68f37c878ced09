"""`python -m tests.nothing_moved REVISION`: is every model what it was at a revision, to the bit?

Both trees run in the same environment, one process each, on every preset that is small: initial
parameters, logits, loss and every gradient in float32 and float64, and logits by a cache in
float32. Prints a line for each preset, with the largest difference where bits differ, and ends with
1 if float64 differs by more than rounding.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
LIMITS = {"logits": 1e-12, "cached": 1e-12, "loss": 1e-12, "gradient": 1e-10, "initial": 0.0}
RECORD = """
import sys
import jax, jax.numpy as jnp, numpy as np
import multiscreen_jax as mj
from multiscreen_jax import losses
from multiscreen_jax.models.registry import preset_names

small = [n for n in preset_names() if n.endswith(("tiny", "-8m"))]
for name in small:
    for dtype in ("float32", "float64"):
        with jax.enable_x64(dtype == "float64"):
            model, config = mj.models.create(
                name, vocab_size=61, num_layers=4, dtype=dtype, param_dtype=dtype
            )
            tokens = jax.random.randint(jax.random.key(1), (2, 71), 0, 61)
            ids = jnp.asarray([[1] * 30 + [2] * 37 + [0] * 4] * 2)
            params = jax.jit(model.init)(jax.random.key(0), tokens[:, :4])["params"]
            rng = np.random.default_rng(2)
            moved = jax.tree.map(
                lambda x: jnp.asarray(x + 0.2 * rng.standard_normal(x.shape), x.dtype), params
            )
            batch = {"tokens": tokens, "segment_ids": ids}
            loss, gradients = jax.jit(
                jax.value_and_grad(lambda p: losses.next_token(model, p, batch))
            )(moved)
            logits = jax.jit(lambda p: model.apply({"params": p}, tokens, ids).logits)(moved)
            found = {"logits": logits, "loss": loss}
            if dtype == "float32":  # the first versions could not decode with 64-bit integers
                cache, cached = model.init_cache(moved, 2, 80), []
                step = jax.jit(lambda p, t, c: model.apply({"params": p}, t, cache=c))
                for chunk in jnp.split(tokens, [40, 41, 42], axis=1):
                    out = step(moved, chunk, cache)
                    cache = out.cache
                    cached.append(out.logits)
                found["cached"] = jnp.concatenate(cached, 1)
            for kind, tree in (("initial", params), ("gradient", gradients)):
                for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
                    path = jax.tree_util.keystr(path, simple=True, separator="/")
                    found[f"{kind} {path}"] = leaf
            np.savez(f"{sys.argv[1]}/{name}.{dtype}.npz", **found)
    jax.clear_caches()
"""


def record(tree: Path, folder: Path) -> None:
    folder.mkdir()
    # Programs of milliseconds: what compiles them fastest is best.
    environment = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "true", **os.environ}
    environment |= {"PYTHONPATH": str(tree), "JAX_PLATFORMS": "cpu"}
    subprocess.run(
        [sys.executable, "-c", RECORD, str(folder)], cwd=tree, env=environment, check=True
    )


def difference(old: np.ndarray, new: np.ndarray) -> float:
    """Largest difference, of the largest number; infinite for another shape or dtype."""
    if old.shape != new.shape or old.dtype != new.dtype:
        return np.inf
    return float(np.max(np.abs(old - new), initial=0) / max(np.max(np.abs(old), initial=0), 1e-30))


def main(revision: str) -> int:
    failed = 0
    with tempfile.TemporaryDirectory() as name:
        there = Path(name)
        add = ["git", "worktree", "add", "--detach", str(there / "tree"), revision]
        subprocess.run(add, cwd=ROOT, check=True, capture_output=True)
        try:
            record(there / "tree", there / "old")
        finally:
            remove = ["git", "worktree", "remove", "--force", str(there / "tree")]
            subprocess.run(remove, cwd=ROOT, check=True)
        record(ROOT, there / "new")
        for file in sorted((there / "old").iterdir()):
            old, new = np.load(file), np.load(there / "new" / file.name)
            moved = {}
            for key in sorted({*old.files, *new.files}):
                known = key in old.files and key in new.files
                if not known or old[key].tobytes() != new[key].tobytes():
                    moved[key] = difference(old[key], new[key]) if known else np.inf
            wrong = "float64" in file.name and any(
                size > LIMITS[key.split()[0]] for key, size in moved.items()
            )
            failed += wrong
            worst = max(moved, key=moved.__getitem__, default=None)
            said = (
                "the same bits"
                if worst is None
                else (
                    f"{len(moved)} of {len(old.files)} differ, most {worst} by {moved[worst]:.1e}"
                )
            )
            print(f"{file.stem:40s}{said}{'  WRONG' if wrong else ''}", flush=True)
    return min(failed, 1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("revision")
    sys.exit(main(parser.parse_args().revision))
