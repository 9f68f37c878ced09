"""Commands as a shell calls them, in this process, and what they must refuse.

`REFUSED` has the words after `python -m COMMAND`, and a part of the line that must come of them.
"""

import ast
import contextlib
import os
import runpy
import signal
import sys
from pathlib import Path

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
# Started by other programs here, with words of their own.
INTERNAL = {"experiments.bench.worker", "experiments.bench.candidates"}
_WATCHED = (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE)


def all_commands() -> set[str]:
    """Every module below experiments that can be run."""
    found = set()
    for path in EXPERIMENTS.rglob("*.py"):
        text = path.read_text()
        if '__name__ == "__main__"' in text or path.name == "__main__.py":
            ast.parse(text)
            parts = path.relative_to(EXPERIMENTS.parent).with_suffix("").parts
            found.add(".".join(parts).removesuffix(".__main__"))
    return found - INTERNAL


@contextlib.contextmanager
def _as_before():
    """Undoes what a command changes of its process."""
    handlers = {number: signal.getsignal(number) for number in _WATCHED}
    words, variables = sys.argv, dict(os.environ)
    try:
        yield
    finally:
        sys.argv = words
        os.environ.clear()
        os.environ.update(variables)
        for number, handler in handlers.items():
            signal.signal(number, handler)


def run(command: str, words: list[str]) -> int:
    """Runs `python -m command words...` here; its exit code."""
    with _as_before():
        sys.argv = [command, *words]
        try:
            runpy.run_module(command, run_name="__main__", alter_sys=True)
        except SystemExit as ended:
            if isinstance(ended.code, int):
                return ended.code
            raise AssertionError(f"the exit code is no number: {ended.code!r}") from None
    return 0


TINY = ["tiny", "--train.output-dir", "OUT"]
TPU = ["--name", "pod", "--zone", "us-east5-a"]
GKE = ["--name", "fleet", "--zone", "us-east5-a"]
SHARDS = ["--output", "OUT", "--shards", "2"]
AOT = ["--config", "28m", "--topology", "v5e:4x4"]

# OUT is a new folder, RUN one with a run, FILE a text file, DIR an empty folder.
REFUSED: dict[str, list[tuple[list[str], str]]] = {
    "experiments.train": [
        (["tinny"], "unknown config 'tinny'; did you mean tiny"),
        ([""], "unknown config ''"),
        (["../tiny"], "unknown config '../tiny'"),
        ([*TINY, "--optim.lr", "1"], "Unrecognized options: --optim.lr"),
        ([*TINY, "--optim.learning-rat", "1"], "did you mean --optim.learning-rate?"),
        ([*TINY, "--optim.learning-rate", "fast"], "could not convert string to float: 'fast'"),
        ([*TINY, "--optim.learning-rate"], "--optim.learning-rate"),
        ([*TINY, "--train.steps", "0"], "train.steps is 0; allowed: an integer >= 1"),
        ([*TINY, "--train.steps", "1e3"], "invalid literal for int() with base 10: '1e3'"),
        ([*TINY, "--data.batch-size", "-1"], "batch_size is -1; allowed: an integer >= 1"),
        ([*TINY, "--data.source", "nothing.txt"], "nothing.txt"),
        ([*TINY, "--model.dtype", "int8"], "dtype must be one of"),
        ([*TINY, "--mesh.fsdp", "7"], "mesh"),
        ([*TINY, "more"], "Unrecognized options: more"),
        ([*TINY[:1], "--train.output-dir", "FILE"], "FILE"),
    ],
    "experiments.generate": [
        ([], "Missing from python -m experiments.generate: RUN_DIR"),
        (["nothing"], "no run at nothing"),
        (["DIR"], "no checkpoint in DIR"),
        (["RUN", "--promt", "x"], "did you mean --prompt"),
        (["RUN", "--temperature", "-1"], "temperature must be a finite number >= 0"),
        (["RUN", "--temperature", "warm"], "could not convert string to float"),
        (["RUN", "--temperature", "nan"], "temperature must be"),
        (["RUN", "--top-p", "2"], "top_p must be None or in (0, 1]"),
        (["RUN", "--top-k", "0"], "top_k must be"),
        (["RUN", "--seed", "-1"], "--seed is -1"),
        (["RUN", "--max-new-tokens", "0"], "max_new_tokens must be an integer >= 1"),
        (["RUN", "--step", "99"], "no checkpoint of step 99"),
        (["RUN", "RUN"], "Unrecognized options: RUN"),
    ],
    "experiments.evaluate": [
        ([], "Missing from python -m experiments.evaluate: RUN_DIR"),
        (["nothing"], "no run at nothing"),
        (["DIR"], "no checkpoint in DIR"),
        (["RUN", "--task", "perplex"], "--task is 'perplex'; allowed: perplexity"),
        (["RUN", "--task", "mqar"], "--task mqar needs a run on mqar"),
        (["RUN", "--rope-factor", "2"], "--rope-factor needs a Transformer run"),
        (["RUN", "--output", "FILE"], "--output: cannot make"),
        (["RUN", "--max-batches", "x"], "--max-batches"),
        (["RUN", "--relevance.layer", "0"], "did you mean --relevance.layers"),
        (["RUN", "--task", "relevance", "--relevance.text", ""], "--relevance.text is empty"),
        (["RUN", "--task", "relevance", "--relevance.tokens", "0"], "--relevance.tokens is 0"),
        (["RUN", "--data.source", "nothing.txt"], "nothing.txt"),
        (["RUN", "--step", "99"], "no checkpoint of step 99"),
        (["RUN", "--task", "lm-eval"], "--lm-eval.tasks is empty"),
        (["RUN", "--batch-size", "0"], "batch"),
    ],
    "experiments.export": [
        ([], "Missing from python -m experiments.export: RUN_DIR"),
        (["RUN"], "Missing from python -m experiments.export"),
        (["nothing", "OUT"], "no run at nothing"),
        (["DIR", "OUT"], "no checkpoint in DIR"),
        (["FILE", "OUT"], "FILE"),
        (["RUN", "DIR"], "DIR is a directory, not a file to write"),
        (["RUN", "OUT", "more"], "Unrecognized options: more"),
        (["RUN", "OUT", "--step", "x"], "--step"),
        (["RUN", "OUT", "--step", "99"], "no checkpoint of step 99"),
        (["RUN", "OUT", "--sources", "x"], "did you mean --source"),
        (["RUN", "OUT", "--source", "multiscreen/papper"], "multiscreen/paper"),
        (["RUN", "OUT", "--source", "transformer/hf-llama"], "transformer/hf-llama"),
    ],
    "experiments.prepare_data": [
        ([], "Missing from"),
        (["nothing.txt", "--output", "OUT"], "nothing.txt"),
        (["DIR", "--output", "OUT"], "DIR"),
        (["FILE"], "--output"),
        (["FILE", "--output"], "--output"),
        (["FILE", "--outputs", "OUT"], "--outputs"),
        (["FILE", "--output", "OUT", "--tokenizer", "gpt3"], "gpt3"),
        (["FILE", "--output", "OUT", "--valid-fraction", "2"], "valid_fraction is 2.0"),
        (["FILE", "--output", "OUT", "--valid-fraction", "x"], "--valid-fraction"),
        (["FILE", "--output", "OUT", "--valid-inputs", "nothing.txt"], "nothing.txt"),
        (["FILE", "--output", "FILE"], "FILE"),
    ],
    "experiments.prepare_shards": [
        ([], "Missing from"),
        (["nothing.txt", *SHARDS], "nothing.txt"),
        (["DIR", *SHARDS], "DIR"),
        (["FILE", "--output", "OUT"], "--shards"),
        (["FILE", "--shards", "2"], "--output"),
        (["FILE", *SHARDS, "--worker", "2"], "--worker"),
        (["FILE", *SHARDS, "--tokenizer", "gpt3"], "gpt3"),
        (["FILE", "--output", "OUT", "--shards", "0"], "shards"),
        (["FILE", "--output", "OUT", "--shards", "x"], "--shards"),
        (["FILE", *SHARDS, "--workers", "0"], "workers"),
        (["FILE", *SHARDS, "--eos-token", "x"], "eos"),
        (["FILE", "--output", "FILE", "--shards", "2"], "FILE"),
    ],
    "experiments.aot_check": [
        ([], "Missing from"),
        (["--config", "28m"], "--topology"),
        ([*AOT, "--mesh", "fsdp=7"], "mesh"),
        ([*AOT, "--mesh", "depth=2"], "unknown mesh axis 'depth'"),
        ([*AOT, "--mesh", "fsdp=0"], "mesh is 'fsdp=0'"),
        ([*AOT, "--batch-tokens", "1000"], "batch-tokens is 1000"),
        ([*AOT, "--length", "x"], "--length"),
        ([*AOT, "--lenght", "3"], "did you mean --length"),
        ([*AOT, "--dtype", "int8"], "dtype must be one of"),
        (["--config", "29m", "--topology", "v5e:4x4"], "unknown config '29m'"),
        (["--config", "28m", "--topology", "v9:4x4"], "v9"),
        (["--config", "28m", "--topology", "v5e"], "v5e"),
    ],
    "experiments.launch": [
        (["aws"], "platform is 'aws'; allowed: tpu, gke, slurm"),
        (["tpu"], "Expected one of {create"),
        (["tpu", "creat", *TPU], "creat"),
        (["tpu", "logs"], "Missing from"),
        (["tpu", "logs", "--name", "pod", "--zone", "us"], "--zone is 'us'"),
        (["tpu", "logs", *TPU, "--worker", "-1"], "--worker is -1; allowed: an integer >= 0"),
        (["tpu", "install", *TPU, "--revision=--output=x"], "--revision is '--output=x'"),
        (["tpu", "mount", *TPU, "--share", "999.999.999.999:/runs"], "allowed: HOST:/PATH"),
        (["tpu", "run", *TPU, "--", "tinny"], "unknown config 'tinny'"),
        (["tpu", "run", *TPU, "--", "tiny", "--train.step", "3"], "--train.steps"),
        (["gke", "logs", *GKE, "--workload", "-x"], "--workload"),
        (["gke", "install", "--image", "a b:1"], "--image is 'a b:1'"),
        (["gke", "mount", *GKE], "nothing to mount is given"),
        (["slurm", "run", "--nodes", "0", "--gpus-per-node", "1", "--", "tiny"], "--nodes is 0"),
        (["slurm", "status", "--job", "1;id"], "--job is '1;id'"),
    ],
    "experiments.launch.local": [
        ([], "Missing from python -m experiments.launch.local: --processes INT"),
        (["--processes", "2"], "no command is given"),
        (["--processes", "2", "--"], "no command is given"),
        (["--processes", "2", "--", "nosuchcommand"], "'nosuchcommand' cannot be started: No such"),
        (["--processes", "2", "--", "DIR"], "cannot be started: Permission denied"),
        (["--processes", "2", "--", "FILE"], "cannot be started: Permission denied"),
        (["--processes", "2", "--", ""], "'' cannot be started"),
        (["--processes", "0", "--", "true"], "--processes is 0; allowed: an integer >= 1"),
        (["--processes", "two", "--", "true"], "invalid literal for int() with base 10: 'two'"),
        (["--proceses", "2", "--", "true"], "--processes INT"),
        (["--processes", "2", "true"], "Unrecognized options: true"),
    ],
    "experiments.paper": [
        ([], "Expected one of {list"),
        (["lists"], "lists"),
        (["list", "no_study"], "no_study"),
        (["list", "--scale", "big"], "--scale is 'big'; allowed: small, paper"),
        (["list", "--scal", "small"], "did you mean --scale"),
        (["run", "no_study", "--folder", "OUT"], "no_study"),
        (["run", "windows", "--only", "nothing", "--folder", "OUT"], "--only has nothing"),
        (["run", "--scale", "", "--folder", "OUT"], "--scale is ''"),
        (["report", "--scale", "big"], "--scale is 'big'"),
        (["report", "windows"], "Unrecognized options: windows"),
        (["report", "--output"], "--output"),
    ],
    "experiments.notebooks": [
        (["99"], "no notebook begins with '99'"),
        (["--help-me"], "no notebook begins with '--help-me'"),
    ],
    "experiments.bench.long_context": [
        ([], "Missing from python -m experiments.bench.long_context"),
        (["multiscren-speeches"], "did you mean multiscreen-speeches"),
    ],
    "experiments.bench.runs": [([], "Missing from python -m experiments.bench.runs")],
}
# Of every command with options.
UNKNOWN = ["--no-such-option", "3"]
