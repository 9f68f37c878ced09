"""What of the launchers runs on any machine: order, failures, signals, and the batch script."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments.launch import tpu
from experiments.launch.commands import Place, run_all

LAUNCH = Path(__file__).parents[2] / "experiments" / "launch"
# Tells that it began, saves on SIGTERM and ends well, as a training run does.
SAVES = """
import signal, sys, time
def save(*_):
    print("saved", flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, save)
print("began", flush=True)
time.sleep(60)
"""


def test_a_failure_ends_what_would_follow(tmp_path, capfd):
    first, second = ["touch", str(tmp_path / "a b")], ["touch", str(tmp_path / "never")]
    with pytest.raises(OSError, match="false ended with code 1"):
        run_all([first, ["false"], second], dry_run=False)
    assert capfd.readouterr().out.splitlines() == [f"touch '{tmp_path}/a b'", "false"]
    assert [path.name for path in tmp_path.iterdir()] == ["a b"]
    with pytest.raises(OSError, match="no-such-program is not installed here"):
        run_all([["no-such-program"]], dry_run=False)


@pytest.mark.parametrize("code", [0, 5])
def test_supervision_ends_as_its_command(code):
    command = [sys.executable, "-c", f"import sys; print(sys.argv[1:]); sys.exit({code})"]
    done = subprocess.run(
        ["bash", LAUNCH / "supervise.sh", *command, "a b", "$c"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (code, "['a b', '$c']\n")


def test_a_stopped_run_saves_and_counts_as_failed():
    command = ["bash", str(LAUNCH / "supervise.sh"), sys.executable, "-c", SAVES]
    # As xpk does it: a subshell in the background, and the signal goes to that.
    shell = (
        "(export A=1 && exec "
        + " ".join(f'"${{{n}}}"' for n in range(1, 6))
        + ") & echo $!; wait $!; exit $?"
    )
    with subprocess.Popen(
        ["bash", "-c", shell, "xpk", *command], stdout=subprocess.PIPE, text=True
    ) as process:
        child = int(process.stdout.readline())
        assert process.stdout.readline() == "began\n"
        os.kill(child, signal.SIGTERM)
        assert process.stdout.read() == "saved\n"
    assert process.returncode == 143


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """srun, scancel and scontrol that write down how they are called; scancel signals srun."""
    calls = tmp_path / "calls"

    def program(name, body=""):
        path = tmp_path / name
        path.write_text(f'#!/usr/bin/env bash\necho "{name} $*" >> {calls}\n{body}\n')
        path.chmod(0o755)

    program("srun", f'echo $$ > {tmp_path}/pid; exec {sys.executable} -c "$SAVES"')
    program("scancel", f"kill -TERM $(cat {tmp_path}/pid)")
    program("scontrol")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    return calls


def start_batch(monkeypatch, program):
    monkeypatch.setenv("SAVES", program)
    script = LAUNCH / "train.sbatch"
    return subprocess.Popen(
        ["bash", script, "tiny", "--train.output-dir", "a b"], stdout=subprocess.PIPE, text=True
    )


def test_at_its_time_limit_a_job_saves_and_goes_on_later(slurm, monkeypatch):
    with start_batch(monkeypatch, SAVES) as process:
        assert process.stdout.readline() == "began\n"
        process.send_signal(signal.SIGUSR1)
        assert process.stdout.read() == "saved\n"
    assert process.returncode == 0
    assert slurm.read_text().splitlines() == [
        "srun --kill-on-bad-exit=1 python -m experiments.train tiny --train.output-dir a b",
        "scancel --signal=TERM 17",
        "scontrol requeue 17",
    ]


def test_a_job_that_saves_too_slowly_goes_on_later_too(slurm, monkeypatch, tmp_path):
    deaf = 'import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print("began", '
    monkeypatch.setenv("GRACE_SECONDS", "31")
    with start_batch(monkeypatch, f"{deaf}flush=True); time.sleep(60)") as process:
        assert process.stdout.readline() == "began\n"
        process.send_signal(signal.SIGUSR1)
        assert process.wait(timeout=20) == 0
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)  # as the requeue does
    assert slurm.read_text().splitlines()[-2:] == [
        "scancel --signal=TERM 17",
        "scontrol requeue 17",
    ]


@pytest.mark.parametrize("code", [0, 3])
def test_a_job_that_ends_by_itself_is_over(slurm, monkeypatch, code):
    with start_batch(monkeypatch, f"raise SystemExit({code})") as process:
        pass
    assert process.returncode == code
    assert "requeue" not in slurm.read_text()


def test_a_cancelled_job_does_not_come_back(slurm, monkeypatch):
    with start_batch(monkeypatch, SAVES) as process:
        assert process.stdout.readline() == "began\n"
        process.send_signal(signal.SIGTERM)  # scancel: to the script, and to the steps
        subprocess.run(["scancel"], check=True)
    assert process.returncode == -signal.SIGTERM
    assert "requeue" not in slurm.read_text()


@pytest.mark.parametrize("script", ["supervise.sh", "train.sbatch"])
def test_scripts_are_well_formed(script):
    subprocess.run(["bash", "-n", LAUNCH / script], check=True)


def test_a_host_starts_one_run_stops_it_and_continues(tmp_path, monkeypatch):
    place = Place("pod", "us-east5-a")
    training = ("tiny", "--train.output-dir", "/mnt/runs/it's")
    python = tmp_path / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    (tmp_path / "multiscreen_jax").mkdir()
    python.write_text(f'#!/usr/bin/env bash\necho "$*"\nexec {sys.executable} -c "$SAVES"\n')
    python.chmod(0o755)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SAVES", SAVES)
    log = tmp_path / "train.log"

    def on_host(commands):
        script = commands[-1][-1].removeprefix("--command=")
        return subprocess.run(["bash", "-c", script], capture_output=True, text=True)

    def wait_for(lines):
        for _ in range(1000):
            if log.exists() and log.read_text().splitlines() == lines:
                return
            time.sleep(0.01)
        raise AssertionError(log.read_text())

    started = ["-m experiments.train tiny --train.output-dir /mnt/runs/it's", "began"]
    assert on_host(tpu.stop(place)).returncode == 1  # nothing to stop
    assert on_host(tpu.run(place, training)).returncode == 0
    wait_for(started)
    again = on_host(tpu.run(place, training))
    assert (again.returncode, again.stderr) == (1, "a run is going on already\n")
    assert on_host(tpu.stop(place)).returncode == 0
    wait_for([*started, "saved"])
    while on_host(tpu.run(place, training)).returncode:  # until the first has ended
        time.sleep(0.01)
    wait_for([*started, "saved", *started])
    on_host(tpu.stop(place))


@pytest.mark.parametrize("mounted", [False, True])
def test_a_mount_can_be_repeated(mounted, tmp_path, monkeypatch):
    calls = tmp_path / "calls"
    for name in ("sudo", "gcsfuse", "mountpoint", "stat"):
        code = int(name == "mountpoint" and not mounted)
        owner = f"echo {1000 if mounted else 0}\n" if name == "stat" else ""
        path = tmp_path / name
        path.write_text(f'#!/usr/bin/env bash\necho "{name} $*" >> {calls}\n{owner}exit {code}\n')
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("USER", "me")
    for command in tpu.mount(Place("pod", "us-east5-a"), "corpora", "10.0.0.2:/runs"):
        script = command[-1].removeprefix("--command=")
        subprocess.run(["bash", "-c", script], check=True)
    made = [line for line in calls.read_text().splitlines() if "/mnt/" in line]
    owned = "stat -c %u /mnt/runs"
    if mounted:  # and someone's
        assert made == ["mountpoint -q /mnt/data", "mountpoint -q /mnt/runs", owned]
    else:
        data = ["sudo mkdir -p /mnt/data", "sudo chown me /mnt/data"]
        data += ["gcsfuse --implicit-dirs -o ro corpora /mnt/data"]
        runs = ["sudo mkdir -p /mnt/runs", "sudo mount -o rw,hard 10.0.0.2:/runs /mnt/runs"]
        given = ["sudo chown me: /mnt/runs", "sudo chmod u=rwx,g=rwx,o= /mnt/runs"]
        checks = ["mountpoint -q /mnt/data", "mountpoint -q /mnt/runs"]
        assert made == [checks[0], *data, checks[1], *runs, owned, *given]
