"""Tasks of lm-evaluation-harness on a model that is in memory already: published names, or YAML files of one's own.

Source: https://github.com/EleutherAI/lm-evaluation-harness
"""

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from featherweight.errors import ConfigError, did_you_mean
from featherweight.models.tokenizer import Tokenizer
from featherweight.text.harness_names import require_harness


def task_names(include: Path | None = None) -> list[str]:
    """Return the names of all tasks: those of the harness, and those of the YAML files in a folder."""
    return list(_manager(include).all_tasks)


def evaluate_tasks(
    model: nn.Module,
    tokenizer: Tokenizer,
    tasks: Sequence[str],
    *,
    include: Path | None = None,
    limit: int | None = None,
    shots: int | None = None,
    batch_size: int = 8,
) -> dict[str, dict[str, float]]:
    """Run tasks of the harness.

    Args:
        model: a causal language model of transformers, on its device.
        tokenizer: its tokenizer.
        tasks: names.
        include: a folder with YAML files of further tasks.
        limit: only the first so many questions of each task.
        shots: examples in front of each question; None takes what the task says.
        batch_size: rows at once.

    Returns:
        By task: metric to value, with "metric_stderr" where the harness gives one.

    Raises:
        ConfigError: if a task is unknown (says what there is) or its data cannot be read.
        MissingExtraError: if the harness is not installed.
    """
    require_harness(tasks)
    manager = _manager(include)
    known = manager.all_tasks
    for task in tasks:
        if task not in known:
            own = [] if include is None else [name for name in known if name not in set(_manager(None).all_tasks)]
            raise ConfigError(
                f"evaluate: task={task} is unknown; expected one of {len(known)} of the harness"
                f"{f', or {chr(44).join(own)} of {include}' if own else ''}. {did_you_mean(task, known)} "
                "fw evaluate --list-tasks shows all of them."
            )
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    with _quiet():
        try:
            wrapped = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
            found: Any = simple_evaluate(
                model=wrapped,
                tasks=list(tasks),
                task_manager=manager,
                limit=limit,
                num_fewshot=shots,
                bootstrap_iters=0,
                random_seed=0,
                log_samples=False,
            )
        except (OSError, ConnectionError, ValueError, FileNotFoundError) as error:
            reason = str(error).partition("\n")[0]
            raise ConfigError(
                f"evaluate: tasks={','.join(tasks)} cannot be run ({type(error).__name__}: {reason}); expected data "
                "that can be read, from the hub or from local files. Without a network, name local files in a task of "
                "your own (--include), or use --questions."
            ) from error
    return {task: _numbers(values) for task, values in found["results"].items()}


def _numbers(values: dict[str, Any]) -> dict[str, float]:
    """Return the metrics without the names of filters; what is no number is left out."""
    numbers: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            metric, _, _filter = name.partition(",")
            numbers.setdefault(metric, float(value))
    return numbers


def _manager(include: Path | None) -> Any:
    from lm_eval.tasks import TaskManager

    with _quiet():
        return TaskManager(include_path=None if include is None else str(include))


class _quiet:
    """Keep the harness from writing its progress between our lines."""

    def __enter__(self) -> None:
        self._loggers = [logging.getLogger(name) for name in ("lm_eval", "lm-eval", "evaluate", "datasets")]
        self._levels = [logger.level for logger in self._loggers]
        self._warnings = warnings.catch_warnings()
        self._warnings.__enter__()
        warnings.simplefilter("ignore")
        for logger in self._loggers:
            logger.setLevel(logging.ERROR)

    def __exit__(self, *error: object) -> None:
        for logger, level in zip(self._loggers, self._levels, strict=True):
            logger.setLevel(level)
        self._warnings.__exit__(None, None, None)
