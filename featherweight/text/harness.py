"""Tasks of lm-evaluation-harness on a model that is in memory already: published names, or YAML files of one's own.

Source: https://github.com/EleutherAI/lm-evaluation-harness
"""

import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from featherweight.errors import ConfigError
from featherweight.models.tokenizer import Tokenizer
from featherweight.text.harness_names import require_harness, unknown_task


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
    require_harness(tasks, include)
    manager = _manager(include)
    known = manager.all_tasks
    for task in tasks:
        if task not in known:
            raise unknown_task(task, {*known}, set(), include)
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
    """Return the metrics without the names of filters; what is no number, and the count of questions, is left out."""
    numbers: dict[str, float] = {}
    for name, value in values.items():
        if name != "sample_len" and isinstance(value, int | float) and not isinstance(value, bool):
            metric, _, _filter = name.partition(",")
            numbers.setdefault(metric, float(value))
    return numbers


def _manager(include: Path | None) -> Any:
    from lm_eval.tasks import TaskManager

    with _quiet():
        return TaskManager(include_path=None if include is None else str(include))


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the harness, and what it calls, from writing between our lines: logs, warnings, and bars off a terminal.

    On a terminal its bars stay: a task takes minutes.
    """
    loggers = [logging.getLogger(name) for name in ("lm_eval", "lm-eval", "evaluate", "datasets")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        if sys.stderr is not None and not sys.stderr.isatty():
            # Bars are made all over, some by programs that are called; what fails is raised, and told by us.
            stack.enter_context(_closed_standard_error())
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


@contextmanager
def _closed_standard_error() -> Iterator[None]:
    """Send what anybody writes to standard error into nothing, programs that are called included."""
    sys.stderr.flush()
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    stream = sys.stderr
    try:
        os.dup2(nothing, 2)
        with open(os.devnull, "w", encoding="utf-8") as sys.stderr:
            yield
    finally:
        sys.stderr = stream
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)
