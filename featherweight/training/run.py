"""`train`: a recipe becomes a run folder that holds all one needs to judge, use, continue and repeat it.

recipe.yaml  environment.json  metrics.jsonl  summary.json  report.html  report.json  checkpoints/  model/
"""

import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from featherweight.config import write_atomically
from featherweight.errors import CheckpointError, ConfigError
from featherweight.report import Report
from featherweight.training.checkpoint import Checkpoints
from featherweight.training.console import ConsoleProgress
from featherweight.training.environment import describe_environment, machine_name
from featherweight.training.events import Callback, Event
from featherweight.training.interrupt import stop_on_signals
from featherweight.training.loop import Loop
from featherweight.training.metrics import MetricsFile, final_training_loss, read_metrics
from featherweight.training.recipe import Recipe, RecipeSource, load_recipe
from featherweight.training.summary import Summary, finite, run_report
from featherweight.training.trackers import Trackers


@dataclass(frozen=True)
class Run:
    """A finished run."""

    folder: Path
    """Where its files are."""
    summary: Summary
    """What came out."""
    report: Report
    """The same for people."""


def train(
    recipe: RecipeSource,
    *,
    overrides: Iterable[str] = (),
    out: str | PathLike[str] | None = None,
    resume: bool = False,
    callbacks: Sequence[Callback] | None = None,
) -> Run:
    """Train a model as a recipe says.

    Seeds the process's random generators. The first Ctrl-C or SIGTERM ends the run after the current step with a
    checkpoint.

    Args:
        recipe: a recipe, a mapping, or the path of a YAML or JSON file.
        overrides: "key=value" changes of the recipe, such as "optimizer.rank=64".
        out: the run folder; None makes runs/<name>-<time>.
        resume: continue the run in `out` from its newest complete checkpoint, bit by bit; from the start if it has
            none yet.
        callbacks: listeners; None shows the progress on standard output, an empty list is silent.

    Returns:
        The run, with its folder.

    Raises:
        ConfigError: if the recipe is wrong, or `out` already holds a run or cannot be written.
        CheckpointError: if there is nothing to resume, or it belongs to another recipe.
        NumericsError: if the loss is not finite.
        TrainingInterrupted: after a requested stop.
    """
    folder = Path(out) if out is not None else None
    parsed = load_recipe(recipe, overrides)
    # Everything that can be wrong with words is found before anything is written or read.
    optimizer_config, _ = parsed.optimizer_config(), parsed.task_config()
    if folder is None and resume:
        raise CheckpointError(
            "run: out=None leaves open what to resume; expected the folder of a run. Give its path as out."
        )
    folder = folder or new_run_folder(run_name(recipe, parsed))
    _check_folder(folder, resume)
    environment = describe_environment()
    if not resume:
        # Early, so that a folder that cannot be written is found before a model is loaded.
        parsed.to_file(folder / "recipe.yaml")
    write_atomically(folder / "environment.json", f"{json.dumps(environment, indent=2)}\n")
    evaluations = _Evaluations()
    listeners: list[Callback] = [MetricsFile(folder / "metrics.jsonl"), evaluations]
    if parsed.trackers:
        listeners.append(Trackers(parsed.trackers, folder))
    listeners += [ConsoleProgress(optimizer_config.name)] if callbacks is None else callbacks

    loop = Loop(parsed)
    checkpoints = Checkpoints(folder / "checkpoints", keep=parsed.keep_checkpoints)
    latest = checkpoints.latest() if resume else None
    if latest is not None:
        loop.resume(latest)
    if resume:
        # Late, so that a recipe that does not fit leaves the one of the run in place.
        parsed.to_file(folder / "recipe.yaml")
    with stop_on_signals() as stop:
        loop.run(listeners, checkpoints, stop)

    if parsed.save_model:
        loop.task.save_model(loop.accelerator.unwrap_model(loop.model), folder / "model")
    lines = read_metrics(folder / "metrics.jsonl")
    at_start = [line for line in lines if line["event"] == "evaluate" and line["step"] == 0]
    summary = Summary(
        optimizer=optimizer_config.to_dict(),
        steps=loop.progress.step,
        tokens=loop.progress.tokens,
        training_loss=final_training_loss(lines),
        held_out=finite(evaluations.last),
        before_training={k: v for k, v in at_start[0].items() if k not in ("event", "step")} if at_start else {},
        tokens_per_s=loop.progress.tokens_per_s,
        skipped_steps=loop.progress.skipped_steps,
        task=loop.task.describe(),
        footprint=loop.footprint,
    )
    report = run_report(
        f"{run_name(recipe, parsed)}: {optimizer_config.name}", summary, lines, machine_name(environment)
    )
    save_report(report, folder)
    # Last of all, because its presence says that the run is finished.
    summary.save(folder / "summary.json")
    return Run(folder, summary, report)


class _Evaluations(Callback):
    """Remembers the newest evaluation."""

    def __init__(self) -> None:
        self.last: dict[str, float] = {}

    def on_evaluate(self, event: Event) -> None:
        self.last = dict(event.metrics)


def save_report(report: Report, folder: Path) -> None:
    """Write report.html and report.json into a folder."""
    write_atomically(folder / "report.json", f"{report.to_json()}\n")
    report.save_html(folder / "report.html")


def run_name(source: RecipeSource, recipe: Recipe) -> str:
    """Return the recipe's name, or else that of its file, or else "run"."""
    if recipe.name is not None:
        return recipe.name
    return Path(source).stem if isinstance(source, str | PathLike) else "run"


def new_run_folder(name: str) -> Path:
    """Return a path runs/<name>-<time> that does not exist yet."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    candidate, count = Path("runs") / f"{name}-{stamp}", 1
    while candidate.exists():
        count += 1
        candidate = Path("runs") / f"{name}-{stamp}-{count}"
    return candidate


def _check_folder(folder: Path, resume: bool) -> None:
    """Refuse to overwrite a run, and to resume what is none."""
    if resume and not (folder / "recipe.yaml").is_file():
        raise CheckpointError(
            f"run: out={folder} holds no run; expected the folder of the run to resume. Correct the path, or "
            "start without resume."
        )
    if not resume and (folder / "metrics.jsonl").exists():
        raise ConfigError(
            f"run: out={folder} already holds a run; expected a new or empty folder. Resume it, or choose another "
            "folder."
        )
