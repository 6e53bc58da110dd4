"""`train`: a recipe becomes a run folder that holds all one needs to judge, use, continue and repeat it.

recipe.yaml  environment.json  metrics.jsonl  summary.json  report.html  report.json  report.csv  checkpoints/  best/
model/, and what the task draws (`Task.illustrate`)
"""

import json
import warnings
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from featherweight.config import write_atomically
from featherweight.errors import CheckpointError
from featherweight.report import Report
from featherweight.training.best import BestMetric
from featherweight.training.checkpoint import Checkpoint, Checkpoints
from featherweight.training.console import ConsoleProgress
from featherweight.training.environment import describe_environment, machine_name
from featherweight.training.estimate import MemoryEstimate
from featherweight.training.events import Callback, Event
from featherweight.training.interrupt import stop_on_signals
from featherweight.training.keep_best import KeepBest, StopEarly
from featherweight.training.loop import Loop
from featherweight.training.metrics import MetricsFile, final_training_loss, read_metrics
from featherweight.training.out_of_memory import explain_out_of_memory
from featherweight.training.plan_check import PlanCheck
from featherweight.training.recipe import Recipe, RecipeSource, load_recipe
from featherweight.training.resume import changed_length, resume_conflicts
from featherweight.training.run_folder import claimed, new_run_folder
from featherweight.training.start_check import guessing_notice, start_loss
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
    estimate: MemoryEstimate | None = None,
) -> Run:
    """Train a model as a recipe says.

    Seeds the process's random generators. The first Ctrl-C or SIGTERM ends the run after the current step with a
    checkpoint.

    Args:
        recipe: a recipe, a mapping, or the path of a YAML or JSON file.
        overrides: "key=value" changes of the recipe, such as "optimizer.rank=64".
        out: the run folder; None makes runs/<name>-<time>.
        resume: continue the run in `out` from its newest complete checkpoint, bit by bit; from the start if it has
            none yet. A finished run is returned as it stands, unless the recipe has other steps or epochs than it:
            then it goes on from its checkpoint under the schedule of the new length.
        callbacks: listeners; None shows the progress on standard output, an empty list is silent.
        estimate: from `fw.estimate_memory` for this recipe; the report then shows it beside what was measured, and the
            run stops after its second step if that is more than 10 % above.

    Returns:
        The run, with its folder.

    Raises:
        ConfigError: if the recipe is wrong, or `out` already holds a run, is in use or cannot be written.
        CheckpointError: if there is nothing to resume, or it belongs to another recipe.
        DeviceError: if memory runs out.
        NumericsError: if the loss is not finite.
        TrainingInterrupted: after a requested stop.
    """
    folder = Path(out) if out is not None else None
    parsed = load_recipe(recipe, overrides)
    # Everything that can be wrong with words is found before anything is written or read.
    parsed.optimizer_config()
    parsed.task_config()
    if folder is None and resume:
        raise CheckpointError(
            "run: out=None leaves open what to resume; expected the folder of a run. Give its path as out."
        )
    name = run_name(recipe, parsed)
    folder = folder or new_run_folder(name)
    with claimed(folder, resume):
        if resume:
            change = _check_same_recipe(folder, parsed)
            if (folder / "summary.json").is_file():
                if change is None and not _ended_early(folder, parsed):
                    return _finished(folder)
                _check_can_grow(folder, change)
        with explain_out_of_memory(parsed):
            checks = [] if estimate is None else [PlanCheck(estimate)]
            return _train(parsed, name, folder, resume, callbacks, checks)


def _finished(folder: Path) -> Run:
    """Read a finished run."""
    summary = Summary.load(folder / "summary.json")
    try:
        return Run(folder, summary, Report.from_json((folder / "report.json").read_text(encoding="utf-8")))
    except OSError as error:
        raise CheckpointError(
            f"run: report={folder / 'report.json'} cannot be read ({error.strerror}); expected the report of a "
            "finished run. Delete summary.json beside it to finish the run anew."
        ) from error


def _train(
    recipe: Recipe,
    name: str,
    folder: Path,
    resume: bool,
    callbacks: Sequence[Callback] | None,
    checks: Sequence[Callback],
) -> Run:
    optimizer_config = recipe.optimizer_config()
    environment = describe_environment()
    evaluations = _Evaluations()
    listeners: list[Callback] = [MetricsFile(folder / "metrics.jsonl"), evaluations]
    if not resume:
        # Early, so that a folder that cannot be written is found before a model is loaded.
        recipe.to_file(folder / "recipe.yaml")
    write_atomically(folder / "environment.json", f"{json.dumps(environment, indent=2)}\n")
    if recipe.trackers:
        listeners.append(Trackers(recipe.trackers, folder, project=name))
    loop = Loop(recipe)
    best = None
    if recipe.save_best:
        options = BestMetric() if recipe.save_best is True else recipe.save_best
        best = KeepBest(options, loop, folder)
        listeners.append(best)
    listeners += [ConsoleProgress(optimizer_config.name)] if callbacks is None else callbacks
    checkpoints = Checkpoints(folder / "checkpoints", keep=recipe.keep_checkpoints)
    latest = checkpoints.latest() if resume else None
    if latest is not None:
        loop.resume(latest)
    if resume:
        # Late, so that a recipe that does not fit leaves the run as it was.
        _reopen(folder, latest)
        recipe.to_file(folder / "recipe.yaml")
    with stop_on_signals() as stop:
        if recipe.early_stopping is not None:
            listeners.append(StopEarly(recipe.early_stopping, stop, folder))
        # Checks come last, so that the others have seen the step that they end.
        loop.run([*listeners, *checks], checkpoints, stop)
        # Still inside: a Ctrl-C that comes now must not lose a run that is all but done.
        if recipe.checkpoint_at_end:
            _save_end(loop, checkpoints)
        found = None if best is None else best.restore()
        if recipe.save_model:
            _save_model(loop, checkpoints, folder / "model")
        loop.illustrate(folder)
        lines = read_metrics(folder / "metrics.jsonl")
        at_start = [line for line in lines if line["event"] == "evaluate" and line["step"] == 0]
        summary = Summary(
            optimizer=optimizer_config.to_dict(),
            steps=loop.progress.step,
            items=loop.progress.items,
            training_loss=final_training_loss(lines),
            held_out=finite(evaluations.last),
            before_training={k: v for k, v in at_start[0].items() if k not in ("event", "step")} if at_start else {},
            items_per_s=loop.progress.items_per_s,
            skipped_steps=loop.progress.skipped_steps,
            task=loop.task.describe(),
            footprint=loop.footprint,
            words=loop.task.words,
            best_step=None if found is None else found[0],
            best={} if found is None else found[1],
            ended_early=stop.reason,
        )
        report = run_report(f"{name}: {optimizer_config.name}", summary, lines, machine_name(environment))
        if notice := guessing_notice(loop.task, start_loss(lines)):
            report.add_note(notice, title="Start")
        for method in loop.methods:
            report.sections += method.report(loop.model).sections
        save_report(report, folder)
        # Last of all, because its presence says that the run is finished.
        summary.save(folder / "summary.json")
    return Run(folder, summary, report)


def _save_end(loop: Loop, checkpoints: Checkpoints) -> None:
    """Write the checkpoint from which more steps go on; a run that is done is not lost for the want of it."""
    if loop.progress.step in checkpoints.steps():
        return
    try:
        checkpoints.save(loop.progress.step, loop.model, loop.state_dict(), loop.recipe.to_dict())
    except CheckpointError as error:
        warnings.warn(f"{error} The run itself is done; it cannot go on with more steps.", stacklevel=2)


def _save_model(loop: Loop, checkpoints: Checkpoints, folder: Path) -> None:
    """Write the trained model; if that fails, a checkpoint keeps what was trained, and a resume tries again."""
    model = loop.accelerator.unwrap_model(loop.model)
    try:
        with ExitStack() as forms:
            for method in loop.methods:
                forms.enter_context(method.saving(model, folder))
            loop.task.save_model(model, folder)
    except Exception:
        latest = checkpoints.latest()
        if latest is None or latest.step != loop.progress.step:
            with suppress(CheckpointError):  # on a full disk, where the first reason is the one to tell
                checkpoints.save(loop.progress.step, loop.model, loop.state_dict(), loop.recipe.to_dict())
        raise


class _Evaluations(Callback):
    """Remembers the newest evaluation."""

    def __init__(self) -> None:
        self.last: dict[str, float] = {}

    def on_evaluate(self, event: Event) -> None:
        self.last = dict(event.metrics)


def save_report(report: Report, folder: Path) -> None:
    """Write report.html, report.json and report.csv, its first table, into a folder."""
    write_atomically(folder / "report.json", f"{report.to_json()}\n")
    report.save_html(folder / "report.html")
    report.save_csv(folder / "report.csv")


def run_name(source: RecipeSource, recipe: Recipe) -> str:
    """Return the recipe's name, or else what its task makes of that of its file, or else "run"."""
    if recipe.name is not None:
        return recipe.name
    name = Path(source).stem if isinstance(source, str | PathLike) else "run"
    return recipe.task_class.run_name(recipe.task_config(), name)


def _check_same_recipe(folder: Path, recipe: Recipe) -> str | None:
    """Refuse to go on with another recipe; return how the length of the run changes, or None."""
    began = Recipe.from_file(folder / "recipe.yaml").to_dict()
    conflicts = resume_conflicts(began, recipe.to_dict())
    if conflicts:
        raise CheckpointError(
            f"run: recipe of {folder} differs ({'; '.join(conflicts)}); expected the recipe that began the run. Resume "
            "with that recipe, or start a new run in another folder. Only steps, epochs and what is reported may "
            "change."
        )
    return changed_length(began, recipe.to_dict())


def _ended_early(folder: Path, recipe: Recipe) -> bool:
    """Tell whether a finished run was ended by rules of early stopping that are no longer those of the recipe."""
    began = Recipe.from_file(folder / "recipe.yaml")
    return bool(Summary.load(folder / "summary.json").ended_early) and began.early_stopping != recipe.early_stopping


def _check_can_grow(folder: Path, change: str | None) -> None:
    """Refuse to make a finished run longer that has no checkpoint to go on from."""
    if not Checkpoints(folder / "checkpoints").steps():
        raise CheckpointError(
            f"run: recipe of {folder} differs ({change or 'early_stopping'}), and the run is finished without a "
            "checkpoint to go on from; expected one. Start a new run from its weights (task.model of that folder), and "
            "keep checkpoint_at_end: true in it."
        )


def _reopen(folder: Path, latest: Checkpoint | None) -> None:
    """Put the summary of a run that goes on aside: its presence says that the run is finished."""
    summary = folder / "summary.json"
    if summary.exists():
        step = Summary.load(summary).steps
        summary.replace(folder / f"summary-step-{step}.json")
        if latest is not None and latest.step < step:
            warnings.warn(
                f"run: {folder} was finished after step {step}, and its newest checkpoint is that of step "
                f"{latest.step}: the steps between are made again.",
                stacklevel=2,
            )
