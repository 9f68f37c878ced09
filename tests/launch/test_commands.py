"""The commands themselves: what a dry run prints is what a reader trusts."""

import atexit
import inspect
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.launch import __main__ as program
from experiments.launch import slurm, tpu
from experiments.launch.commands import GRACE_SECONDS, Place, check_share

TPU = ["--name", "pod", "--zone", "us-east5-a"]
GKE = ["--name", "fleet", "--zone", "us-east5-a", "--project", "lab-7"]
TRAINING = ["quickstart", "--train.output-dir", "/mnt/runs/q", "--data.text-field", "it's; $HOME"]
IMAGE = ["--image", "us-docker.pkg.dev/lab-7/images/run:3"]
GKE_RUN = ["--workload", "first", "--tpu-type", "v5p-256", *IMAGE]
SLURM_RUN = ["slurm", "run", "--nodes", "1", "--gpus-per-node", "8"]
GCLOUD = "gcloud compute tpus tpu-vm"
QUEUE = "gcloud compute tpus queued-resources"
PLACE = "--zone=us-east5-a"
PLACE_OF_TPU = Place("pod", "us-east5-a")
CLUSTER = "--cluster=fleet --zone=us-east5-a --project=lab-7"

GOLDEN = [
    (
        ["tpu", "create", *TPU, "--accelerator", "v5p-256"],
        [f"{GCLOUD} create pod {PLACE} --accelerator-type=v5p-256 --version=v2-alpha-tpuv5"],
    ),
    (
        ["tpu", "create", *TPU, "--accelerator", "v6e-256", "--queued", "--spot"],
        [
            f"{QUEUE} create pod {PLACE} --accelerator-type=v6e-256 --node-id=pod "
            "--runtime-version=v2-alpha-tpuv6e --spot"
        ],
    ),
    (
        ["tpu", "create", *TPU, "--accelerator", "v4-8", "--runtime-version", "x", "--reserved"],
        [f"{GCLOUD} create pod {PLACE} --accelerator-type=v4-8 --version=x --reserved"],
    ),
    (["tpu", "status", *TPU], [f"{GCLOUD} describe pod {PLACE} '--format=value(state,health)'"]),
    (
        ["tpu", "status", *TPU, "--queued"],
        [f"{QUEUE} describe pod {PLACE} '--format=value(state.state)'"],
    ),
    (
        ["tpu", "install", *TPU, "--revision", "v1"],
        [
            "git archive --format=tar.gz --output=/private/multiscreen_jax.tar.gz v1 --",
            f"{GCLOUD} scp /private/multiscreen_jax.tar.gz pod: {PLACE} --worker=all",
            f"{GCLOUD} ssh pod {PLACE} --worker=all {shlex.quote(f'--command={tpu.INSTALL}')}",
        ],
    ),
    (
        ["tpu", "mount", *TPU, "--share", "10.0.0.2:/runs"],
        [
            f"{GCLOUD} ssh pod {PLACE} --worker=all '--command=sudo apt-get install -y nfs-common "
            "&& { mountpoint -q /mnt/runs || { sudo mkdir -p /mnt/runs && sudo mount -o rw,hard "
            '10.0.0.2:/runs /mnt/runs; }; } && { [ "$(stat -c %u /mnt/runs)" != 0 ] || { sudo '
            'chown "$USER": /mnt/runs && sudo chmod u=rwx,g=rwx,o= /mnt/runs; }; }\''
        ],
    ),
    (
        ["tpu", "logs", *TPU],
        [f"{GCLOUD} ssh pod {PLACE} --worker=0 '--command=tail -n 100 -F ~/train.log'"],
    ),
    (
        ["tpu", "stop", *TPU],
        [
            f'{GCLOUD} ssh pod {PLACE} --worker=all \'--command=kill -0 "$(cat ~/train.pid)" '
            '2> /dev/null && kill -TERM "$(cat ~/train.pid)"\''
        ],
    ),
    (["tpu", "delete", *TPU], [f"{GCLOUD} delete pod {PLACE} --quiet"]),
    (["tpu", "delete", *TPU, "--queued"], [f"{QUEUE} delete pod {PLACE} --force --quiet"]),
    (
        ["gke", "create", *GKE, "--tpu-type", "v5p-256", "--spot"],
        [
            f"xpk cluster create {CLUSTER} --tpu-type=v5p-256 --num-slices=1 --spot "
            "--enable-gcsfuse-csi-driver --enable-gcpfilestore-csi-driver"
        ],
    ),
    (
        ["gke", "create", *GKE, "--tpu-type", "tpu7x-128", "--reservation", "ours"],
        [
            f"xpk cluster create {CLUSTER} --tpu-type=tpu7x-128 --num-slices=1 --reservation=ours "
            "--enable-gcsfuse-csi-driver --enable-gcpfilestore-csi-driver"
        ],
    ),
    (["gke", "status", *GKE], [f"xpk workload list {CLUSTER}"]),
    (
        ["gke", "install", *IMAGE],
        [
            f"docker build --file=experiments/launch/Dockerfile --tag={IMAGE[1]} .",
            f"docker push {IMAGE[1]}",
        ],
    ),
    (
        ["gke", "mount", *GKE, "--bucket", "corpora", "--runs-gigabytes", "2560"],
        [
            f"xpk storage attach data {CLUSTER} --type=gcsfuse --bucket=corpora --size=1 "
            "--readonly=true --mount-point=/mnt/data --auto-mount=true",
            f"xpk storage create runs {CLUSTER} --type=gcpfilestore --size=2560 --tier=BASIC_SSD "
            "--vol=runs --access-mode=ReadWriteMany --readonly=false --mount-point=/mnt/runs "
            "--auto-mount=true",
        ],
    ),
    (
        ["gke", "logs", *GKE, "--workload", "first"],
        [
            "gcloud container clusters get-credentials fleet --region=us-east5 --project=lab-7",
            "kubectl logs --follow --tail=100 --selector=xpk.google.com/workload=first,"
            "batch.kubernetes.io/job-completion-index=0",
        ],
    ),
    (
        ["gke", "stop", *GKE, "--workload", "first"],
        [f"xpk workload delete {CLUSTER} --workload=first --force"],
    ),
    (["gke", "delete", *GKE], [f"xpk cluster delete {CLUSTER} --force"]),
    (["slurm", "status", "--job", "17"], ["squeue --jobs=17"]),
    (["slurm", "logs", "--job", "17"], ["tail -n 100 -F multiscreen-17.log"]),
    (["slurm", "stop", "--job", "17"], ["scancel --signal=TERM 17"]),
    (["slurm", "delete", "--job", "17"], ["scancel 17"]),
]


def dry_run(monkeypatch, capsys, *words):
    monkeypatch.setattr(sys, "argv", ["launch", *words])
    program.main()
    return capsys.readouterr().out.splitlines()


@pytest.fixture(autouse=True)
def nothing_runs(monkeypatch):
    def refuse(*words, **options):
        raise AssertionError(f"{words} would run")

    monkeypatch.setattr(subprocess, "run", refuse)


@pytest.mark.parametrize(("words", "lines"), GOLDEN, ids=[" ".join(w[:2]) for w, _ in GOLDEN])
def test_dry_runs(monkeypatch, capsys, words, lines):
    monkeypatch.setattr(tpu, "private_folder", lambda: "/private")
    assert dry_run(monkeypatch, capsys, *words, "--dry-run") == lines


def test_every_command_has_a_golden():
    seen = {tuple(words[:2]) for words, _ in GOLDEN}
    every = {(name, verb) for name, (_, verbs) in program.PLATFORMS.items() for verb in verbs}
    assert every - seen == {(name, "run") for name in program.PLATFORMS}  # below


def test_training_on_a_slice(monkeypatch, capsys):
    (line,) = dry_run(monkeypatch, capsys, "tpu", "run", *TPU, "--dry-run", "--", *TRAINING)
    *words, script = shlex.split(line)
    assert words == f"{GCLOUD} ssh pod {PLACE} --worker=all".split()
    before, command = script.removeprefix("--command=").split("(nohup ~/venv/bin/python ")
    assert before == (
        "if kill -0 \"$(cat ~/train.pid)\" 2> /dev/null; then echo 'a run is going on already' >&2;"
        " exit 1; fi; cd ~/multiscreen_jax && "
    )
    command, after = command.split(" >> ")
    assert shlex.split(command) == ["-m", "experiments.train", *TRAINING]  # safe in any shell
    assert after == "~/train.log 2>&1 < /dev/null & echo $! > ~/train.pid)"


@pytest.mark.parametrize(("options", "grace"), [([], 900), (["--grace-seconds", "60"], 60)])
def test_training_on_gke(monkeypatch, capsys, options, grace):
    run = ["gke", "run", *GKE, *GKE_RUN, *options]
    (line,) = dry_run(monkeypatch, capsys, *run, "--dry-run", "--", *TRAINING)
    *words, script = shlex.split(line)
    assert (
        words
        == (
            f"xpk workload create {CLUSTER} --workload=first --tpu-type=v5p-256 --num-slices=1 "
            f"--docker-image={IMAGE[1]} --max-restarts=50 --restart-on-exit-codes=1,4 "
            f"--termination-grace-period-seconds={grace}"
        ).split()
    )
    assert shlex.split(script.removeprefix("--command=")) == [
        *["exec", "bash", "experiments/launch/supervise.sh", "python", "-m", "experiments.train"],
        *TRAINING,
    ]


@pytest.mark.parametrize(("more", "grace"), [([], 900), (["--grace-seconds", "3600"], 3600)])
def test_training_under_slurm(monkeypatch, capsys, more, grace):
    sizes = ["--nodes", "4", "--gpus-per-node", "8"]
    options = ["--partition", "h100", "--account", "lab", "--python", "/nfs/venv/bin/python"]
    run = ["slurm", "run", *sizes, *options, *more, "--dry-run", "--", *TRAINING]
    (line,) = dry_run(monkeypatch, capsys, *run)
    assert shlex.split(line) == [
        *["sbatch", "--nodes=4", "--gpus-per-node=8", "--ntasks-per-node=8", "--time=24:00:00"],
        *("--partition=h100", "--account=lab", f"--signal=B:USR1@{grace}"),
        f"--export=ALL,PYTHON=/nfs/venv/bin/python,GRACE_SECONDS={grace}",
        "experiments/launch/train.sbatch",
        *TRAINING,
    ]


def test_a_bucket_needs_its_driver_once(monkeypatch, capsys):
    mount = ["tpu", "mount", *TPU, "--bucket", "corpora", "--share", "10.0.0.2:/runs"]
    bucket, share = dry_run(monkeypatch, capsys, *mount, "--dry-run")
    script = shlex.split(bucket)[-1].removeprefix("--command=")
    assert script.startswith("{ command -v gcsfuse || {")
    assert script.endswith(
        "{ mountpoint -q /mnt/data || { sudo mkdir -p /mnt/data && sudo chown $USER /mnt/data && "
        "gcsfuse --implicit-dirs -o ro corpora /mnt/data; }; }"
    )
    assert "nfs-common" in share


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["aws", "create"], "platform is 'aws'; allowed: tpu, gke, slurm"),
        (
            ["tpu", "logs", "--name", "Pod 1", "--zone", "z"],
            "--name is 'Pod 1'; allowed: lowercase",
        ),
        (
            ["tpu", "logs", "--name", "pod", "--zone", "us-east5"],
            "--zone is 'us-east5'; allowed: a",
        ),
        (
            ["tpu", "logs", *TPU, "--project", "Lab!"],
            "--project is 'Lab!'; allowed: a project's id",
        ),
        (
            ["tpu", "logs", *TPU, "--", "quickstart"],
            "-- quickstart is given; allowed: only after tpu",
        ),
        (
            ["tpu", "create", *TPU, "--accelerator", "tpu7x-8"],
            "'tpu7x-8'; allowed: v4-N, v5litepod",
        ),
        (
            ["tpu", "create", *TPU, "--accelerator", "v4-8", "--spot", "--reserved"],
            "--spot and --reserved are both given; allowed: one of them",
        ),
        (["tpu", "mount", *TPU], "nothing to mount is given; allowed: --bucket, --share, or both"),
        (["tpu", "mount", *TPU, "--bucket", "gs://x"], "--bucket is 'gs://x'; allowed: a bucket's"),
        (["tpu", "mount", *TPU, "--share", "a; b"], "--share is 'a; b'; allowed: HOST:/PATH"),
        (["tpu", "run", *TPU], "no experiment is given; allowed: -- NAME"),
        (["tpu", "run", *TPU, "--", "quikstart"], "unknown config 'quikstart'; did you mean quick"),
        (
            ["tpu", "run", *TPU, "--", "tiny"],
            "train.output-dir is 'runs/tiny'; allowed: a path on a",
        ),
        (
            ["tpu", "run", *TPU, "--", "tiny", "--train.output-dir", "gs://bucket/x"],
            "train.output-dir is 'gs://bucket/x'; allowed: a path on a mount that all hosts share",
        ),
        (
            ["tpu", "run", *TPU, "--", "tiny", "--train.steps", "-1"],
            "train.steps is -1; allowed: an integer >= 1",
        ),
        (["gke", "create", *GKE, "--tpu-type", "h100"], "--tpu-type is 'h100'; allowed: v4-N"),
        (
            ["gke", "create", *GKE, "--tpu-type", "v4-8", "--spot", "--reservation", "x"],
            "--spot and --reservation are both given; allowed: one of them",
        ),
        (
            ["gke", "install", "--image", "run"],
            "--image is 'run'; allowed: a lower-case path and its tag",
        ),
        (["gke", "mount", *GKE], "nothing to mount is given; allowed: --bucket, --runs-gigabytes"),
        (["gke", "mount", *GKE, "--runs-gigabytes", "5"], "--runs-gigabytes is 5; allowed: 0, or"),
        (
            ["gke", "run", *GKE, *GKE_RUN, "--grace-seconds", "9", "--", *TRAINING],
            "--grace-seconds is 9; allowed: 60 to 65535",
        ),
        (["gke", "stop", *GKE, "--workload", "A"], "--workload is 'A'; allowed: lowercase letters"),
        (["slurm", "logs", "--job", "x"], "--job is 'x'; allowed: the number that `run` printed"),
        (
            ["slurm", "run", "--nodes", "0", "--gpus-per-node", "8", "--", "tiny"],
            "--nodes is 0; allowed: an integer >= 1",
        ),
        (
            ["slurm", "run", "--nodes", "1", "--gpus-per-node", "8", "--time", "1d", "--", "tiny"],
            "--time is '1d'; allowed: hours:minutes:seconds",
        ),
        (
            [*SLURM_RUN, "--time", "00:15:00", "--", "tiny"],
            "--time is '00:15:00'; allowed: more than --grace-seconds, 900",
        ),
        (
            [*SLURM_RUN, "--grace-seconds", "70000", "--", "tiny"],
            "--grace-seconds is 70000; allowed: 60 to 65535",
        ),
    ],
)
def test_what_cannot_be_started_is_one_line(monkeypatch, capsys, words, message):
    position = words.index("--") if "--" in words else len(words)
    with pytest.raises(SystemExit) as stop:
        dry_run(monkeypatch, capsys, *words[:position], "--dry-run", *words[position:])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line


def _texts():
    """(platform, verb, option) of every option that takes text."""
    for platform, (module, verbs) in program.PLATFORMS.items():
        for verb in verbs:
            names = inspect.signature(getattr(module, verb)).parameters.values()
            texts = [x.name for x in names if "str" in str(x.annotation) and x.name != "training"]
            if verb == "status" and platform != "slurm":  # all have the same `Place`
                texts += ["name", "zone", "project"]
            yield from ((platform, verb, text.replace("_", "-")) for text in texts)


# What an option of the called program, another word, another line, or nothing at all would be.
HOSTILE = [
    "-x",
    "--output=/tmp/evil",
    "--remote=ext::sh -c id",
    "a b",
    "$(id)",
    "`id`",
    "a;id",
    "a\nb",
]
HOSTILE += [
    "a'b",
    'a"b',
    "a|b",
    "a&b",
    "a>b",
    "a\tb",
    "a\x00b",
    "",
    "a,B=c",
    "\u202eb",
    "a\\b",
    "*",
]
WORDS = {words[0] + words[1]: words for words, _ in GOLDEN}
WORDS |= {"tpurun": ["tpu", "run", *TPU], "gkerun": ["gke", "run", *GKE, *GKE_RUN]}
WORDS |= {"slurmrun": SLURM_RUN}


@pytest.mark.parametrize(("platform", "verb", "option"), [*_texts()])
def test_no_value_is_an_option_or_more_than_a_word(monkeypatch, capsys, platform, verb, option):
    words = list(WORDS[platform + verb])
    if f"--{option}" in words:
        place = words.index(f"--{option}")
        del words[place : place + 2]
    after = ["--", *TRAINING] if verb == "run" else []
    for value in HOSTILE:
        with pytest.raises(SystemExit) as stop:
            dry_run(monkeypatch, capsys, *words, f"--{option}={value}", "--dry-run", *after)
        assert stop.value.code == 2
        told = capsys.readouterr()
        assert told.out == ""
        assert told.err == f"error: --{option} is {value!r}; {told.err.partition('; ')[2]}"


def test_training_options_stay_one_line(monkeypatch, capsys):
    for platform in ("tpu", "gke", "slurm"):
        for value in ("a\nb", "a\x00b", "\x1b[2J", "a\u2028b"):
            training = ["--", "tiny", "--train.output-dir", f"/mnt/runs/{value}"]
            with pytest.raises(SystemExit):
                dry_run(monkeypatch, capsys, *WORDS[f"{platform}run"], "--dry-run", *training)
            (line,) = capsys.readouterr().err.splitlines()
            assert line.endswith("is given after --; allowed: text without control characters")


@pytest.mark.parametrize(
    "share",
    ["10.0.0.2:/runs", "nfs.lab-7.internal:/a/b_c.d", "[fd00::2]:/runs", "filer:/runs", "h:/a-b"],
)
def test_shares(share):
    check_share("--share", share)


@pytest.mark.parametrize(
    "share",
    [
        *("999.999.999.999:/runs", "10.0.0:/runs", "1.2.3.4.5:/runs", "0.0.0.0:/runs", "10.0.0.2"),
        *("10.0.0.2:runs", "10.0.0.2:/", "fd00::2:/runs", "[10.0.0.2]:/runs", "[nfs]:/runs", ":/a"),
        *("-o:/runs", "a..b:/runs", "a_b:/runs", "nfs:/a b", "nfs:/a;id", "nfs:/$(id)", "nfs:/a\n"),
        *("224.0.0.1:/runs", "[fe80::1%eth0]:/runs", "a" * 64 + ":/runs", "nfs:/\u202e"),
    ],
)
def test_what_is_no_share(share):
    with pytest.raises(ValueError, match="allowed: HOST:/PATH, such as"):
        check_share("--share", share)


def test_the_archive_lies_in_a_private_folder(monkeypatch):
    ended = []
    monkeypatch.setattr(atexit, "register", lambda *words, **named: ended.append((words, named)))
    first, second = (Path(tpu.install(PLACE_OF_TPU)[1][5]) for _ in range(2))
    assert first.parent != second.parent
    for archive, ((end, *words), named) in zip((first, second), ended, strict=True):
        assert archive.parent.stat().st_mode & 0o777 == 0o700
        end(*words, **named)
        assert not archive.parent.exists()


def test_help_and_missing_options(monkeypatch, capsys):
    with pytest.raises(SystemExit, match="0"):
        dry_run(monkeypatch, capsys, "--help")
    assert "{tpu,gke,slurm}" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        dry_run(monkeypatch, capsys, "tpu", "logs", "--dry-run")
    assert "--zone" in capsys.readouterr().err


def test_the_limit_of_a_job_is_read_in_seconds():
    assert slurm._seconds("1-02:03:04") == 24 * 3600 + 2 * 3600 + 3 * 60 + 4
    assert slurm._seconds("00:16:00") == 960


def test_the_batch_script_and_its_launcher_give_the_same_time():
    script = (Path(slurm.__file__).parent / "train.sbatch").read_text()
    assert f"#SBATCH --signal=B:USR1@{GRACE_SECONDS}\n" in script
    assert f'grace="${{GRACE_SECONDS:-{GRACE_SECONDS}}}"\n' in script


def test_the_image_leaves_out_what_git_does():
    root = Path(slurm.__file__).parents[2]
    ignored = [f"**/{line.rstrip('/')}" for line in (root / ".gitignore").read_text().split()]
    _, *lines = (root / ".dockerignore").read_text().splitlines()
    assert lines == [".git", *ignored]
