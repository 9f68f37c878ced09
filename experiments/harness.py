"""Runs tasks of lm-evaluation-harness (the extra `lm-eval`), and prints its table."""

import difflib
import os
from pathlib import Path
from typing import Any

from experiments.evaluate_config import LmEvalConfig

_BOOTSTRAP_DRAWS = 1000  # for the errors of metrics that have no formula for theirs


def run_harness(adaptor: Any, chosen: LmEvalConfig) -> dict[str, Any]:
    """{"results": metrics by task, "groups": by group, "versions": of the tasks}.

    Raises:
      ValueError: no task, an unknown one, or data that cannot be read.
    """
    if not chosen.tasks:
        raise ValueError("--lm-eval.tasks is empty; allowed: names of tasks, such as hellaswag")
    folder = chosen.include_path
    if folder is not None and not Path(folder).is_dir():
        raise FileNotFoundError(f"--lm-eval.include-path: there is no folder {folder}")
    import lm_eval
    from lm_eval.tasks import TaskManager
    from lm_eval.utils import make_table

    manager = TaskManager(include_path=folder)
    names = manager.match_tasks(list(chosen.tasks))
    for pattern in chosen.tasks:
        if not manager.match_tasks([pattern]):
            near = difflib.get_close_matches(pattern, manager.all_tasks, n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else "none is like it"
            raise ValueError(f"--lm-eval.tasks: the harness knows no task {pattern!r}; {hint}")
    # It would fork, and a process with JAX's threads may hang when it forks.
    os.environ.setdefault("DISABLE_MULTIPROC", "1")
    try:
        found = lm_eval.simple_evaluate(
            model=adaptor,
            tasks=names,
            task_manager=manager,
            num_fewshot=chosen.num_fewshot,
            limit=chosen.limit,
            log_samples=False,
            bootstrap_iters=_BOOTSTRAP_DRAWS,
        )
    except OSError as error:  # most tasks download their data
        reason = str(error).splitlines()[0]
        raise ValueError(f"the data of {', '.join(names)} cannot be read: {reason}") from None
    print(make_table(found))
    return {name: found.get(name, {}) for name in ("results", "groups", "versions")}
