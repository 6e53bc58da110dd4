"""`train`: a recipe becomes a run folder that holds all one needs to judge, use, continue and repeat it.

recipe.yaml  environment.json  metrics.jsonl  summary.json  report.html  report.json  report.csv  checkpoints/  best/
model/, and what the task draws (`Task.illustrate`)
"""

import json
import os
import warnings
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from torch import nn

from featherweight.config import write_atomically
from featherweight.distributed.group import explain_lost_processes, start
from featherweight.distributed.run import begin_sharding, processes_report
from featherweight.distributed.world import World, common
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
from featherweight.training.out_of_memory import explain_out_of_memory, refuse_hopeless
from featherweight.training.plan_check import PlanCheck
from featherweight.training.recipe import Recipe, RecipeSource, load_recipe
from featherweight.training.resume import changed_length, resume_conflicts
from featherweight.training.run_folder import claimed, new_run_folder, require_room
from featherweight.training.start_check import guessing_notice, start_loss
from featherweight.training.summary import Summary, finite, run_report
from featherweight.training.trackers import Trackers

Kept = tuple[nn.Module, dict[str, Any]]
"""What the last checkpoint of a run holds: its weights and its state, empty if that checkpoint stands already."""


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
    checkpoint. Where a launcher such as torchrun has started several processes they train together; the first one
    writes the folder and shows the progress.

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
    start()
    world = World()
    with world.together():
        parsed = load_recipe(recipe, overrides)
        # Everything that can be wrong with words is found before anything is written or read.
        parsed.optimizer_config()
        parsed.task_config()
        if out is None and resume:
            raise CheckpointError(
                "run: out=None leaves open what to resume; expected the folder of a run. Give its path as out."
            )
    begin_sharding(world, parsed)  # what cannot run together leaves every folder as it is
    name = run_name(recipe, parsed)
    folder = world.on_first(lambda: Path(out) if out is not None else new_run_folder(name))
    with ExitStack() as held, explain_lost_processes():
        resume = world.on_first(lambda: _claim(held, folder, resume))
        if resume and world.on_first(lambda: _is_done(folder, parsed)):
            return _finished(folder)
        world.on_first(lambda: refuse_hopeless(folder))
        with explain_out_of_memory(parsed, folder):
            checks = [] if estimate is None else [PlanCheck(estimate)]
            return _train(parsed, name, folder, resume, callbacks, checks, world)


def _claim(held: ExitStack, folder: Path, resume: bool) -> bool:
    """Hold a run folder until `held` ends, and say whether there is something to resume.

    A launcher that starts its processes anew gives them the same arguments, the first time as every other time; so
    under one a run that is to be resumed may be one that has not begun.
    """
    is_restarted = "TORCHELASTIC_RUN_ID" in os.environ
    resume = resume and not (is_restarted and not (folder / "recipe.yaml").is_file())
    held.enter_context(claimed(folder, resume))
    return resume


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
    world: World,
) -> Run:
    evaluations = _Evaluations()
    listeners: list[Callback] = [evaluations]
    # Early, so that a folder that cannot be written is found before a model is loaded.
    environment = describe_environment()
    world.on_first(lambda: _begin_folder(recipe, name, folder, resume, environment, listeners))
    loop = Loop(recipe)
    world.on_first(lambda: require_room(folder, _least_bytes(loop)))
    best = None
    if world.is_first:
        if recipe.save_best:
            options = BestMetric() if recipe.save_best is True else recipe.save_best
            best = KeepBest(options, loop, folder)
            listeners.append(best)
        listeners += [ConsoleProgress(recipe.optimizer_config().name)] if callbacks is None else callbacks
    checkpoints = Checkpoints(folder / "checkpoints", keep=recipe.keep_checkpoints)
    latest = _continue(loop, checkpoints, resume)
    if resume:
        # Late, so that a recipe that does not fit leaves the run as it was.
        world.on_first(lambda: _reopen(folder, recipe, latest))
    first_step = loop.progress.step
    with stop_on_signals() as stop:
        if recipe.early_stopping is not None and world.is_first:
            listeners.append(StopEarly(recipe.early_stopping, stop, folder))
        # Checks come last, so that the others have seen the step that they end.
        loop.run([*listeners, *checks], checkpoints, stop)
        # Still inside: a Ctrl-C that comes now must not lose a run that is all but done.
        processes = processes_report(
            world,
            loop.model,
            loop.bytes_of_process(),
            loop.progress.step - first_step,
        )
        is_kept = world.on_first(lambda: loop.progress.step in checkpoints.steps())
        needs_state = not is_kept and (recipe.save_model or recipe.checkpoint_at_end)
        kept: Kept = loop.weights(), loop.state_dict() if needs_state else {}
        whole = loop.whole_model()

        def finish() -> tuple[Summary, Report]:
            if recipe.checkpoint_at_end:
                _save_end(loop, checkpoints, kept)
            found = None if best is None else best.restore()
            if recipe.save_model:
                _save_model(loop, whole, checkpoints, folder / "model", kept)
            loop.illustrate(whole, folder)
            return _conclude(
                loop, name, folder, evaluations.last, environment, processes, best=found, ended_early=stop.reason
            )

        summary, report = world.on_first(finish)
    return Run(folder, summary, report)


def _least_bytes(loop: Loop) -> int:
    """Return what a run writes at least: the weights that it trains, into a checkpoint and as the model."""
    recipe = loop.recipe
    copies = recipe.save_model + bool(recipe.checkpoint_at_end or recipe.checkpoint_every)
    return copies * sum(one.numel() * one.element_size() for one in loop.model.parameters() if one.requires_grad)


def _is_done(folder: Path, recipe: Recipe) -> bool:
    """Judge a run that is to go on with a recipe: say whether it has no steps left.

    Raises:
        CheckpointError: if it is another run, or has nothing to go on from.
    """
    change = _check_same_recipe(folder, recipe)
    if not (folder / "summary.json").is_file():
        return False
    if change is None and not _ended_early(folder, recipe):
        return True
    _check_can_grow(folder, change)
    return False


def _begin_folder(
    recipe: Recipe, name: str, folder: Path, resume: bool, environment: dict[str, object], listeners: list[Callback]
) -> None:
    """Write what a run folder begins with, and let the metrics go there."""
    if not resume:
        recipe.to_file(folder / "recipe.yaml")
    write_atomically(folder / "environment.json", f"{json.dumps(environment, indent=2)}\n")
    trackers = [Trackers(recipe.trackers, folder, project=name)] if recipe.trackers else []
    listeners[:] = [MetricsFile(folder / "metrics.jsonl"), *listeners, *trackers]


def _continue(loop: Loop, checkpoints: Checkpoints, resume: bool) -> Checkpoint | None:
    """Go on from the newest checkpoint, the same on all processes, if there is one, and return it."""
    with loop.world.together():
        latest = checkpoints.latest() if resume else None
    steps = loop.world.gather(None if latest is None else latest.step)
    if len(set(steps)) > 1:
        seen = ", ".join(f"rank {rank}: {'none' if step is None else step}" for rank, step in enumerate(steps))
        raise common(
            CheckpointError(
                f"run: out={checkpoints.folder.parent} holds other checkpoints for each process (newest step by "
                f"{seen}); expected one file system that all of them see. Put the folder on a shared one."
            )
        )
    if latest is not None:
        with loop.world.together():
            loop.resume(latest)
    return latest


def _conclude(
    loop: Loop,
    name: str,
    folder: Path,
    held_out: dict[str, float],
    environment: dict[str, object],
    processes: Report | None,
    best: tuple[int, dict[str, Any]] | None,
    ended_early: str,
) -> tuple[Summary, Report]:
    """Write the report and the summary of a finished run."""
    config = loop.recipe.optimizer_config()
    lines = read_metrics(folder / "metrics.jsonl")
    at_start = [line for line in lines if line["event"] == "evaluate" and line["step"] == 0]
    summary = Summary(
        optimizer=config.to_dict(),
        steps=loop.progress.step,
        items=loop.progress.items,
        training_loss=final_training_loss(lines),
        held_out=finite(held_out),
        before_training={k: v for k, v in at_start[0].items() if k not in ("event", "step")} if at_start else {},
        items_per_s=loop.progress.items_per_s,
        skipped_steps=loop.progress.skipped_steps,
        task=loop.task.describe(),
        footprint=loop.footprint,
        words=loop.task.words,
        best_step=None if best is None else best[0],
        best={} if best is None else best[1],
        ended_early=ended_early,
    )
    report = run_report(f"{name}: {config.name}", summary, lines, machine_name(environment))
    if notice := guessing_notice(loop.task, start_loss(lines)):
        report.add_note(notice, title="Start")
    for method in loop.methods:
        report.sections += method.report(loop.model).sections
    if processes is not None:
        report.sections += processes.sections
    save_report(report, folder)
    # Last of all, because its presence says that the run is finished.
    summary.save(folder / "summary.json")
    return summary, report


def _save_end(loop: Loop, checkpoints: Checkpoints, kept: Kept) -> None:
    """Write the checkpoint from which more steps go on; a run that is done is not lost for the want of it."""
    if loop.progress.step in checkpoints.steps():
        return
    try:
        checkpoints.save(loop.progress.step, *kept, loop.recipe.to_dict())
    except CheckpointError as error:
        warnings.warn(f"{error} The run itself is done; it cannot go on with more steps.", stacklevel=2)


def _save_model(loop: Loop, model: nn.Module, checkpoints: Checkpoints, folder: Path, kept: Kept) -> None:
    """Write the trained model; if that fails, a checkpoint keeps what was trained, and a resume tries again."""
    try:
        with ExitStack() as forms:
            for method in loop.methods:
                forms.enter_context(method.saving(model, folder))
            loop.task.save_model(model, folder)
    except Exception:
        latest = checkpoints.latest()
        if kept[1] and (latest is None or latest.step != loop.progress.step):
            with suppress(CheckpointError):  # on a full disk, where the first reason is the one to tell
                checkpoints.save(loop.progress.step, *kept, loop.recipe.to_dict())
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


def _reopen(folder: Path, recipe: Recipe, latest: Checkpoint | None) -> None:
    """Put the summary of a run that goes on aside, whose presence says that it is finished, and note its recipe."""
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
    recipe.to_file(folder / "recipe.yaml")
