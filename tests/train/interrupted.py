"""`python -m tests.train.interrupted HOW STEP NAME ...`: the train command, killed on the way.

HOW is `step` (kill -9 when the line of STEP is in metrics.jsonl and no
checkpoint is being written), `saving` (kill -9 while the
checkpoint of STEP is being written in the background), `sealing` (kill -9 between Orbax's commit
and the manifest) or `term` (SIGTERM when the line of STEP is written).
"""

import os
import signal
import sys
import time
from pathlib import Path

from experiments.train import main
from multiscreen_jax.train import checkpoint, manifest, metrics, reading


def send(number):
    os.kill(os.getpid(), number)


def wait_for_saves():
    """Until no checkpoint is being written: steps of a test take less time than saves."""
    folder = Path(sys.argv[sys.argv.index("--train.output-dir") + 1]) / reading.FOLDER
    deadline = time.monotonic() + 60
    while list(folder.glob(".pending-*")) and time.monotonic() < deadline:
        time.sleep(0.05)


def arm(how, step):
    if how in ("step", "term"):
        original = metrics.JsonLines.write

        def write(self, record):
            original(self, record)
            if record["step"] == step:
                if how == "step":
                    wait_for_saves()
                send(signal.SIGKILL if how == "step" else signal.SIGTERM)

        metrics.JsonLines.write = write
    elif how == "saving":
        original_seal = checkpoint.Checkpoints._seal

        def seal(self, manager, number, *rest):
            if number == step:
                assert manager.is_saving_in_progress()
                send(signal.SIGKILL)
            original_seal(self, manager, number, *rest)

        checkpoint.Checkpoints._seal = seal
    else:
        original_manifest = manifest.write

        def write_manifest(folder, facts):
            if facts["step"] == step:
                send(signal.SIGKILL)
            original_manifest(folder, facts)

        manifest.write = write_manifest


if __name__ == "__main__":
    how, step = sys.argv[1], int(sys.argv[2])
    sys.argv = ["train", *sys.argv[3:]]
    arm(how, step)
    main()
