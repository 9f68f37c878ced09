"""Several processes on one machine, joined over gloo as hosts are over a network."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from experiments.launch import local
from multiscreen_jax.train import MeshConfig, distributed, train
from multiscreen_jax.train import last_words as last_words_module
from multiscreen_jax.train.last_words import _GAVE_UP as GAVE_UP
from multiscreen_jax.train.last_words import last_words
from multiscreen_jax.train.reading import steps_in
from tests.marks import slow_unless
from tests.train import hosts, small

ROOT = Path(__file__).parents[2]
STEPS = 20
HEARTBEAT = 5
SHORT = {"--train.steps": STEPS, "--train.checkpoint-every": 10}
EVALUATED = {"--train.evaluate-every": 10}
REPORTED = {
    "--train.health-every": 10,
    "--train.sample-prompts": "the key",
    "--train.sample-tokens": 4,
}


def words(options):
    return [str(word) for option in options.items() for word in option]


def start(count, module, *arguments, **variables):
    """Processes 0 to count - 1 of `python -m module`."""
    return local.start(
        [sys.executable, "-m", module, *map(str, arguments)],
        count,
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu", **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(processes, seconds=300):
    """(return code, stdout, stderr) of each, when all have ended."""
    try:
        with ThreadPoolExecutor(len(processes)) as pool:
            texts = list(pool.map(lambda process: process.communicate(timeout=seconds), processes))
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *text) for process, text in zip(processes, texts, strict=True)]


def run(count, *arguments):
    """stdout of each of `count` processes of tests.train.hosts, all of which must succeed."""
    results = ended(start(count, "tests.train.hosts", *arguments))
    assert [code for code, _, _ in results] == [0] * count, [error for _, _, error in results]
    return [out for _, out, _ in results]


def losses(output):
    return np.array([record["loss"] for record in small.records(output)])


def wait_for_step(output, step):
    """Until the line of a step is in metrics.jsonl."""
    path = output / "metrics.jsonl"
    deadline = time.monotonic() + 200
    while not path.exists() or len(path.read_text().splitlines()) < step:
        assert time.monotonic() < deadline, f"no step {step}"
        time.sleep(0.1)


def copy_run(output, target, step):
    """A copy of a run that ended after `step`."""
    shutil.copytree(output, target)
    for later in steps_in(target / "checkpoints"):
        if later > step:
            shutil.rmtree(target / "checkpoints" / str(later))
    return target


@pytest.fixture(scope="module")
def alone(text, tmp_path_factory):
    """The run of one process with one device."""
    output = tmp_path_factory.mktemp("alone") / "run"
    train(small.config(text, output, *words({**SHORT, **EVALUATED, **REPORTED})))
    return output


@pytest.fixture(scope="module")
def eight(text, tmp_path_factory):
    """(output, folder of states, what was printed) of two processes with four devices each."""
    folder = tmp_path_factory.mktemp("eight")
    mesh = {"--mesh.cpu-devices": 4, "--mesh.data": 2, "--mesh.fsdp": 2, "--mesh.model": 2}
    command = small.arguments(text, folder / "run", *words({**SHORT, **REPORTED, **mesh}))
    return folder / "run", folder, run(2, "train", folder, 0, *command)


@pytest.fixture(scope="module")
def four(text, tmp_path_factory):
    """Output of four processes, which hold two copies of each row and of most parameters."""
    folder = tmp_path_factory.mktemp("four")
    mesh = {"--mesh.data": 1, "--mesh.fsdp": 2, "--mesh.model": 2}
    command = small.arguments(text, folder / "run", *words({**SHORT, **EVALUATED, **mesh}))
    run(4, "train", folder, 0, *command)
    return folder / "run"


@pytest.mark.slow
def test_each_process_gets_the_rows_its_devices_hold():
    first, second = (out.splitlines() for out in run(2, "rows"))
    assert {first[0], second[0]} == {"process 0 of 2", "process 1 of 2"}
    rows = [{line for line in out if ":" in line} for out in (first, second)]
    assert "(6, 1, 1): [0, 1, 2, 3, 4, 5]" in rows[0]
    assert "(2, 3, 1): [6, 7, 8, 9, 10, 11]" in rows[1]
    # Six shares of rows on three devices each, and then shares that straddle both processes.
    assert "(3, 1, 2): [0, 1, 2, 3, 4, 5, 6, 7]" in rows[0]
    assert "(3, 1, 2): [4, 5, 6, 7, 8, 9, 10, 11]" in rows[1]
    assert "(1, 2, 3): [0, 1, 2, 3, 4, 5]" in rows[0]
    assert all(f"(1, 1, 6): {list(range(hosts.ROWS))}" in found for found in rows)


@pytest.mark.exhaustive  # four processes are one run too, below
def test_two_processes_of_four_devices_are_one_run(alone, eight):
    output, _, (first, second) = eight
    assert len(losses(output)) == STEPS
    np.testing.assert_allclose(losses(output), losses(alone), rtol=2e-5)
    same_reports(output, alone, "health/")
    # The first process speaks and writes, and nobody else.
    for said in ("parameters; step compiled", "step 20/20", "the key", "done:"):
        assert said in first
        assert said not in second
    assert "process 1 of 2" in second
    (environment,) = (output / "environment.jsonl").read_text().splitlines()
    assert json.loads(environment)["devices"] == "8 x cpu"
    assert (output / "samples.txt").read_text().startswith("the key")


def same_reports(output, other, prefix):
    for step in (10, 20):
        got, wanted = (small.records(folder)[step - 1] for folder in (output, other))
        names = [name for name in wanted if name.startswith(prefix)]
        assert len(names) >= 3
        for name in names:
            np.testing.assert_allclose(got[name], wanted[name], rtol=1e-4, err_msg=name)


@pytest.mark.slow
def test_four_processes_are_one_run_and_two_can_continue_it(alone, four, text, tmp_path):
    assert len(losses(four)) == STEPS
    np.testing.assert_allclose(losses(four), losses(alone), rtol=2e-5)
    same_reports(four, alone, "validation_")  # two processes hold, and read, each of its rows
    half = copy_run(four, tmp_path / "run", 10)
    (first, _) = run(2, "train", tmp_path, 0, *small.arguments(text, half, *words(SHORT)))
    assert "after step 10" in first
    np.testing.assert_array_equal(losses(half)[:10], losses(four)[:10])
    np.testing.assert_allclose(losses(half), losses(four), rtol=1e-5)


@pytest.mark.slow
def test_processes_continue_from_a_committed_checkpoint_without_manifest(four, text, tmp_path):
    output = copy_run(four, tmp_path / "run", STEPS)
    newest = output / "checkpoints" / str(STEPS)
    (newest / "manifest.json").unlink()  # as a kill between Orbax's commit and the manifest
    newest.with_name(f".pending-{STEPS}").touch()
    more = {**SHORT, "--train.steps": STEPS + 1}
    first, second = run(2, "train", tmp_path, 0, *small.arguments(text, output, *words(more)))
    assert f"checkpoint {STEPS} was saved, but had no manifest yet; written now" in first
    assert f"after step {STEPS}" in first
    assert f"ended after step {STEPS + 1} by None" in second
    assert (newest / "manifest.json").is_file()


@pytest.mark.slow
def test_parameters_and_both_moments_move_from_eight_devices_to_four_to_one(eight, text, tmp_path):
    output, states, _ = eight
    output = copy_run(output, tmp_path / "run", STEPS)
    more = {**SHORT, "--train.steps": 22, "--mesh.cpu-devices": 4, "--mesh.fsdp": 2}
    run(1, "train", tmp_path, 0, *small.arguments(text, output, *words(more)))
    same_state(states / "saved-20.npz", tmp_path / "restored-20.npz")
    with hosts.states_kept(tmp_path):
        train(small.config(text, output, *words({**SHORT, "--train.steps": 23})))
    same_state(tmp_path / "saved-22.npz", tmp_path / "restored-22.npz")


def same_state(saved, restored):
    """Every array, bit for bit; parameters, first and second moments are all there."""
    saved, restored = np.load(saved), np.load(restored)
    assert saved.files == restored.files
    names = {kind: [n for n in saved.files if f"/{kind}/" in f"/{n}"] for kind in KINDS}
    assert len(names["params"]) == len(names["mu"]) == len(names["nu"]) > 5
    for name in saved.files:
        np.testing.assert_array_equal(restored[name], saved[name], err_msg=name)
    for name in (*names["mu"], *names["nu"]):
        assert np.any(saved[name] != 0), name


KINDS = ("params", "mu", "nu")


@pytest.mark.slow
def test_sigterm_at_one_process_stops_all_after_one_step(alone, text, tmp_path):
    output = tmp_path / "run"
    command = small.arguments(text, output, *words(SHORT))
    processes = start(2, "tests.train.hosts", "train", tmp_path, 0.4, *command)
    wait_for_step(output, 2)
    processes[1].send_signal(signal.SIGTERM)
    results = ended(processes)
    assert [code for code, _, _ in results] == [0, 0], results
    steps = [int(re.search(r"ended after step (\d+) by SIGTERM", out)[1]) for _, out, _ in results]
    assert steps[0] == steps[1] < STEPS
    assert steps_in(output / "checkpoints")[-1] == steps[0]
    assert "run the same command again to continue" in results[0][1]
    assert f"after step {steps[0]}" in run(2, "train", tmp_path, 0, *command)[0]
    np.testing.assert_allclose(losses(output), losses(alone), rtol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [1, pytest.param(0, marks=pytest.mark.exhaustive)])
def test_a_killed_process_ends_the_others_which_name_it(victim, text, tmp_path):
    forever = {
        "--train.steps": 10**6,
        "--train.checkpoint-every": 0,
        "--data.batch-size": 6,
        "--mesh.heartbeat-seconds": HEARTBEAT,
    }
    command = small.arguments(text, tmp_path, *words(forever))
    processes = start(3, "experiments.train", *command)
    wait_for_step(tmp_path, 5)
    processes[victim].kill()
    results = ended(processes, HEARTBEAT + 10)
    assert all(code != 0 for code, _, _ in results)
    survivors = [error for number, (_, _, error) in enumerate(results) if number != victim]
    if victim == 0:
        assert all("process 0, the coordinator at 127.0.0.1" in error for error in survivors)
    else:
        # A process that sees the coordinator end before it hears why can only say that.
        assert any(f"process 1 was lost, silent for {HEARTBEAT} s" in e for e in survivors)
        assert all("error: process" in error for error in survivors)


@pytest.mark.parametrize(
    ("reason", "line"),
    [
        (
            "The following tasks are unhealthy (stopped sending heartbeats):\n3\n5\nThe tasks",
            "process 3, 5 was lost, silent for 7 s",
        ),
        ("Barrier failed because: Task 12 heartbeat timeout. This", "process 12 was lost, silent"),
        ("Failed to send RPC to coordination service. Either", "process 0, the coordinator"),
        (
            "INTERNAL: Shutdown barrier has failed.\nBarrier timed out.\n# of tasks that reached "
            "the barrier: 1/3.\nThe first task at the barrier: 2. Some timed out",
            "process 2 ended before the others",
        ),
        (
            "DEADLINE_EXCEEDED\nRPC: /xla.coordination.CoordinationService/RegisterTask",
            "could not join the other processes at host:1 within 9 s",
        ),
        ("something else", None),
    ],
)
def test_what_the_runtime_says_at_the_end_in_one_line(reason, line):
    text = f"loss 3.0\nF1128 client.h:80] {GAVE_UP}. absl::Status: {reason}"
    found = last_words(text, "host:1", "9", "7")
    assert found is None if line is None else found.startswith(line)
    assert last_words(reason, "host:1", "9", "7") is None


@pytest.mark.parametrize("known", [True, False])
def test_the_runtime_s_own_stack_trace_is_shown_only_where_no_line_says_it(known):
    before = "warning: ours\n 10%\r 20%\nE1128 agent: polled an error\n"
    reason = "Task 3 heartbeat timeout" if known else "something else"
    trace = f"F1128 client.h:80] {GAVE_UP}. absl::Status: {reason}\n*** stack:\n    @ 0x7f main\n"
    command = [sys.executable, "-I", "-S", last_words_module.__file__, "host:1", "9", "7"]
    # In pieces, as a pipe may give them: the runtime's line begins in one and ends in the next.
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        for start in range(0, len(before + trace), 50):
            process.stdin.write((before + trace)[start : start + 50].encode())
            process.stdin.flush()
            time.sleep(0.01)
        process.stdin.close()
        written = process.stderr.read().decode()
    assert written.startswith(before)
    if known:
        (line,) = written.removeprefix(before).splitlines()
        assert line.startswith("error: process 3 was lost, silent for 7 s; ")
    else:
        assert written == before + trace


def test_the_launcher_ends_with_the_worst_code():
    child = "import os, sys; sys.exit(3 * int(os.environ['JAX_PROCESS_ID']))"
    command = [sys.executable, "-m", "experiments.launch.local", "--processes", "2", "--"]
    command += [sys.executable, "-c", child]
    launched = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert launched.returncode == 3
    assert launched.stderr == "process 1 of 2 ended with code 3\n"


def join(count, index, address, seconds=2):
    """One process that never meets the others."""
    return subprocess.run(
        [sys.executable, "-m", "experiments.train", "tiny", "--mesh.join-seconds", str(seconds)],
        cwd=ROOT,
        env={
            **os.environ,
            **({"JAX_COORDINATOR_ADDRESS": address} if address else {}),
            "JAX_NUM_PROCESSES": str(count),
            "JAX_PROCESS_ID": str(index),
        },
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@pytest.mark.slow
def test_processes_that_do_not_come_are_named_with_address_and_timeout():
    address = f"127.0.0.1:{local._free_port()}"
    alone = join(2, 1, address)
    assert alone.returncode != 0
    last = alone.stderr.splitlines()[-1]
    assert last.startswith(f"error: could not join the other processes at {address} within 2 s")


@pytest.mark.parametrize(
    ("count", "index", "address", "message"),
    [
        (2, 2, "127.0.0.1:1234", "JAX_NUM_PROCESSES is '2' and JAX_PROCESS_ID is '2'; allowed:"),
        (2, "", "127.0.0.1:1234", "JAX_PROCESS_ID is ''; allowed:"),
        (2, 1, None, "JAX_COORDINATOR_ADDRESS is None; allowed: the host:port of process 0"),
        (2, 1, "somewhere", "JAX_COORDINATOR_ADDRESS is 'somewhere'; allowed:"),
        (2, 1, "localhost:99999", "JAX_COORDINATOR_ADDRESS is 'localhost:99999'; allowed:"),
        (2, 0, "localhost:0", "JAX_COORDINATOR_ADDRESS is 'localhost:0'; allowed:"),
    ],
)
def test_variables_that_cannot_be_are_refused(count, index, address, message, monkeypatch):
    values = (address, count, index)
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    for name, value in zip(names, values, strict=True):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, str(value))
    with pytest.raises(ValueError, match=re.escape(message)):
        distributed.initialize(MeshConfig())


SLURM = {
    "SLURM_JOB_ID": "17",
    "SLURM_STEP_NODELIST": "node[01-02]",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
}


def initialized(**variables):
    """How `initialize` ends in a process of its own, with no other variables of a cluster."""
    clean = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("SLURM_", "JAX_", "OMPI_"))
    }
    program = (
        "from multiscreen_jax.train import MeshConfig, distributed\n"
        "distributed.initialize(MeshConfig())"
    )
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**clean, "JAX_PLATFORMS": "cpu", **variables},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.parametrize(
    ("name", "value"),
    slow_unless((("PROCID", "2"),), (("PROCID", "2"), ("PROCID", "x"), ("NTASKS", ""))),
)
def test_a_cluster_that_cannot_be_is_refused_by_name(name, value):
    ended = initialized(**{**SLURM, f"SLURM_{name}": value})
    line = ended.stderr.splitlines()[-1]
    assert ended.returncode != 0
    assert re.match(rf"ValueError: .*SLURM_{name} is '{value}'.*; allowed: ", line)
    assert "SLURM_STEP_NODELIST is 'node[01-02]'" in line


@pytest.mark.slow
# Of a batch script without srun JAX takes no notice: one process, with all of its node's GPUs.
@pytest.mark.parametrize("variables", [{}, {"SLURM_JOB_ID": "17", "SLURM_NTASKS": "16"}])
def test_no_cluster_is_one_process(variables):
    ended = initialized(**variables)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize(
    ("tasks", "node", "local", "devices", "idle"),
    [
        ("1", "0", "0", 1, True),
        ("8(x4)", "3", "0", 1, False),
        ("8(x2),4", "2", "0", 1, True),
        ("8(x2),4", "1", "0", 1, False),
        ("4", "0", "3", 1, False),  # task 0 says it
        ("1", "0", "0", 8, False),
        ("", "0", "0", 1, False),  # no srun
    ],
)
def test_gpus_that_no_task_uses_are_named(tasks, node, local, devices, idle):
    step = {"SLURM_STEP_TASKS_PER_NODE": tasks, "SLURM_NODEID": node, "SLURM_LOCALID": local}
    environment = {"SLURM_GPUS_ON_NODE": "8", **step}
    line = distributed._idle_gpus(environment, "gpu", devices)
    assert (line is not None) == idle
    if line is not None:
        assert line.startswith("SLURM_GPUS_ON_NODE is 8, and ")
        assert line.endswith("srun --ntasks-per-node=8")
    assert distributed._idle_gpus(environment, "cpu", devices) is None
    assert distributed._idle_gpus({}, "gpu", devices) is None
