"""The training loop: the one place where micro-batches become optimizer steps.

One optimizer step: draw the micro-batches and count their items (tokens, samples, ...); forward and backward each, its
summed loss divided by the items of all of them, so that unequal micro-batches weigh what one large batch would; refuse
a loss that is not finite; clip; update; move on the schedule. Several processes share the micro-batches of a step
(`featherweight.distributed.World`), and decide everything from numbers that all of them have.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from featherweight.distributed.group import explain_lost_processes
from featherweight.distributed.placement import place_bases
from featherweight.distributed.run import begin_sharding, bytes_at_hand, check_replicas_at, share_gradients, share_model
from featherweight.distributed.whole import WholeModel, is_sharded, whole_state, whole_weights
from featherweight.distributed.world import World, common
from featherweight.errors import CheckpointError, NumericsError
from featherweight.simulated import simulated_device
from featherweight.training.checkpoint import Checkpoint, Checkpoints
from featherweight.training.clipping import clip_
from featherweight.training.events import Callback, Event
from featherweight.training.footprint import Footprint, predict_bytes
from featherweight.training.interrupt import StopRequest, TrainingInterrupted
from featherweight.training.passes import Surroundings, passes_of, window_of
from featherweight.training.randomness import continue_rng, preserved_rng, rng_state, seed_everything, seed_of_rank
from featherweight.training.recipe import Recipe
from featherweight.training.resume import changed_length, regrouped, resume_conflicts
from featherweight.training.schedule import follow_groups, lr_factor, restart
from featherweight.training.share import Share
from featherweight.training.start_check import guessing_notice
from featherweight.training.step_progress import StepProgress
from featherweight.training.task import Batch, Task
from featherweight.training.trained_model import fit_to_recipe
from featherweight.unwrap import unwrap_model

if TYPE_CHECKING:
    from featherweight.methods import Method
    from featherweight.optim import LayerwiseHandle


@dataclass
class Progress:
    """How far a run has come; part of every checkpoint."""

    step: int = 0
    """Optimizer steps that are done."""
    items: int = 0
    """Items (tokens, samples, ...) that the loss has summed over."""
    skipped_steps: int = 0
    """Parameters left out of a step because their gradient was not finite, summed over the steps."""
    timed_items: int = 0
    """Items of the steps that count for the speed."""
    timed_seconds: float = 0.0
    """Duration of those steps; evaluation, checkpoints, the first step and measured steps are not among them."""

    @property
    def items_per_s(self) -> float | None:
        """Speed of the training steps, or None before one has counted."""
        return self.timed_items / self.timed_seconds if self.timed_seconds else None

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> "Progress":
        """Return what a checkpoint holds; older ones say tokens whatever their task counts."""
        return cls(**{name.replace("tokens", "items"): value for name, value in state.items()})


class Loop:
    """A run of a recipe in memory: task, model, optimizer, schedule, and how far they are.

    Building one seeds the global random generators. Use `step` to advance by one optimizer step, or `run` for the
    whole recipe.

    Args:
        recipe: what to run.
        task: takes the place of the one that the recipe names, such as one without data for a simulation.

    Raises:
        ConfigError: if an option of the recipe is not allowed or does not fit the model.
        DeviceError: if a process is gone, or their devices do not fit together.
    """

    def __init__(self, recipe: Recipe, *, task: Task | None = None) -> None:
        from featherweight.methods.method import groups_by_methods
        from featherweight.optim import build_optimizer, layerwise

        optimizer_config, _ = recipe.optimizer_config(), recipe.task_config()  # both are judged before the data is read
        is_simulated = simulated_device() is not None
        self.world = World(is_alone=is_simulated)
        self.device = self.world.device
        begin_sharding(self.world, recipe)
        with self.world.together():
            seed_everything(recipe.seed)
            self.task = recipe.build_task() if task is None else task
            self.task.share = Share(self.world)
            self.recipe = recipe = recipe.with_steps(self.task.train_rows())
            model, self.methods = self._build_model()
            self.model: nn.Module = model if is_simulated else model.to(self.device)
        build = partial(build_optimizer, self.model, optimizer_config, seed=recipe.seed, regroup=groups_by_methods)
        share_model(self.world, self.model, recipe, build)
        self.task.prepare(self.model)
        self.optimizer = place_bases(self.world, build(), recipe.sharding)
        self.max_grad_norm = optimizer_config.max_grad_norm or recipe.max_grad_norm
        self.layerwise: LayerwiseHandle | None = None
        if optimizer_config.layerwise:
            passes = self.world.share(recipe.accumulation_steps, 0)[2]  # backward passes of a process
            self.layerwise = layerwise(
                self.model,
                self.optimizer,
                accumulation_steps=window_of(recipe, passes),
                max_grad_norm=self.max_grad_norm or math.inf,  # the metrics show the norm
                clip=optimizer_config.clip,
            )
        self.scheduler = LambdaLR(self.optimizer, lambda step: lr_factor(recipe.schedule, step, recipe.step_count))
        self.progress = Progress()
        self.notice = ""
        self.footprint = Footprint(predicted=predict_bytes(self.model, self.optimizer))
        # Once more, so that dropout does not depend on how many numbers the building of the model has drawn.
        seed_everything(seed_of_rank(recipe.seed, self.world.rank))
        self._batches: Iterator[Batch] | None = None
        self._tell_progress: Callable[[StepProgress], None] | None = None
        around = Surroundings(
            self.task, self.model, self.world, self.layerwise, self._autocast, self._finite_loss, self._on_progress
        )
        self.passes = passes_of(around, recipe)
        self._is_first_step = True
        self._stop = StopRequest()
        self._stops_together = False  # what the last step has agreed on

    def _build_model(self) -> "tuple[nn.Module, list[Method]]":
        """Return the model of the task as the recipe wants it, on the CPU, with its methods."""
        from featherweight.methods.method import apply

        model = self.task.build_model()
        fit_to_recipe(model, self.recipe)
        methods = self.recipe.build_methods()
        for method in methods:
            apply(model, method)
        return model, methods

    def step(self) -> dict[str, float]:
        """Make one optimizer step and return its metrics (see `Event.metrics`).

        Raises:
            NumericsError: if the loss is not finite; weights, optimizer and schedule are then as before the step.
        """
        # The tracker does not see the memory behind DTensors.
        is_measured = self.progress.step + 1 in self.recipe.memory_steps and not is_sharded(self.model)
        skipped_before = self.optimizer.skipped_steps
        self.model.train()
        started = time.perf_counter()
        if is_measured:
            from featherweight.memory import measure_memory

            with measure_memory(self.model, self.optimizer) as memory:
                loss, items, lr, grad_norm = self._optimizer_step()
            self.footprint.include(memory.peak_by_category, memory.max_by_category)
        else:
            loss, items, lr, grad_norm = self._optimizer_step()
        seconds = time.perf_counter() - started
        self.progress.step += 1
        self.progress.items += items
        self.progress.skipped_steps += self.optimizer.skipped_steps - skipped_before
        if not is_measured and not self._is_first_step:
            self.progress.timed_items += items
            self.progress.timed_seconds += seconds
        self._is_first_step = False
        metrics = {
            "loss": loss,
            "lr": lr,
            "grad_norm": grad_norm,
            self.task.words.count_key: self.progress.items,
            "seconds": seconds,
            "skipped_steps": self.progress.skipped_steps,
        }
        if is_measured:
            metrics |= {"peak_bytes": float(memory.peak_bytes)}
            if self.footprint.predicted_peak_bytes:
                metrics |= {"predicted_peak_bytes": float(self.footprint.predicted_peak_bytes)}
        speed = self.progress.items_per_s
        return metrics if speed is None else {**metrics, self.task.words.rate_key: speed}

    def _optimizer_step(self) -> tuple[float, int, float, float]:
        """Return the loss per item, the items, the learning rate used, and the gradient's norm before clipping."""
        _, own, passes = self.world.share(self.recipe.accumulation_steps, self.progress.step)
        micro_batches = [self._next_batch() for _ in range(own)]
        counted = sum(self.task.item_count(batch) for batch in micro_batches)
        items, stops = map(int, self.world.sums(counted, self._stop.requested))
        self._stops_together = stops > 0
        if items == 0:
            raise common(
                NumericsError(
                    f"training: {self.task.words.count_key}=0 in step {self.progress.step + 1}, so its loss is "
                    "undefined; expected at least 1. Check the labels of the data, or raise micro_batch_size or "
                    "accumulation_steps."
                )
            )
        lr = float(self.scheduler.get_last_lr()[0])
        mean_loss = self.passes.run(micro_batches, items, passes)
        share_gradients(self.world, self.model, self.optimizer, self.max_grad_norm, self.recipe.sharding.cores)
        grad_norm = self._clip()
        self.optimizer.step()
        for method in self.methods:
            method.after_step(self.model, self.optimizer, self.progress.step + 1)
        follow_groups(self.scheduler)  # a method may have changed rates
        self.task.after_step(self.model)
        self.scheduler.step()
        self.optimizer.zero_grad(set_to_none=True)
        return mean_loss, items, lr, grad_norm

    def _on_progress(self, progress: StepProgress) -> None:
        if self._tell_progress is not None:
            self._tell_progress(progress)

    def _finite_loss(self, own_loss: float, items: int) -> float:
        """Return the loss per item over all processes; refuse one that is not finite."""
        mean_loss = self.world.sums(own_loss)[0] / items
        if math.isfinite(mean_loss):
            return mean_loss
        self.optimizer.zero_grad(set_to_none=True)
        if self.layerwise is not None:
            self.layerwise.discard()
        broken = [rank for rank, is_finite in enumerate(self.world.gather(math.isfinite(own_loss))) if not is_finite]
        where = f" on rank {broken[0]}" if broken and self.world.size > 1 else ""
        raise common(
            NumericsError(
                f"training: loss={mean_loss} is not finite in step {self.progress.step + 1}{where}; expected a finite "
                "number. The weights are those before that step. Lower the learning rate or lengthen the warm-up."
            )
        )

    def _clip(self) -> float:
        """Scale the gradients down to `max_grad_norm` and return the norm that they had."""
        if self.layerwise is not None:
            return self.layerwise.grad_norm or 0.0
        return clip_(self.model, self.max_grad_norm)

    def evaluate(self) -> dict[str, float]:
        """Return the task's metrics on the held-out split; the random generators are left as they were."""
        with preserved_rng(), self._autocast():
            return self.task.evaluate(self.model, micro_batch_size=self.recipe.micro_batch_size)

    def illustrate(self, model: nn.Module, folder: Path) -> list[Path]:
        """Let the task draw what the `whole_model` does; the random generators are left as they were."""
        with preserved_rng(), self._autocast():
            return self.task.illustrate(model, folder)

    def whole_model(self) -> nn.Module:
        """Return the model as one process has it, to be used by the first one; a collective."""
        if not is_sharded(self.model):
            return unwrap_model(self.model)
        weights = whole_weights(self.model)
        if not self.world.is_first:
            return self.model
        with preserved_rng():
            model, _ = self._build_model()
        model.load_state_dict(weights)
        return model.eval()

    def state_dict(self) -> dict[str, Any]:
        """Return everything but the weights that a bitwise resume needs, as tensors, numbers and plain containers.

        A collective of the processes of the run.
        """
        return {
            "progress": asdict(self.progress),
            "optimizer": whole_state(self.optimizer.state_dict()),
            "scheduler": self.scheduler.state_dict(),
            **({"rng": rng_state()} if self.world.size == 1 else {"rng_of_ranks": self.world.gather(rng_state())}),
            "footprint": self.footprint.to_dict(),
            "methods": [method.state_dict(self.model) for method in self.methods],
        }

    def resume(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint: from here on every number is the one that the uninterrupted run has.

        A recipe of more (or fewer) steps goes on under its own schedule, as if the run had had it from the start.

        Raises:
            CheckpointError: if the checkpoint is damaged, its recipe computes something else (names what differs), or
            it has more steps than the recipe.
        """
        conflicts = resume_conflicts(checkpoint.recipe, self.recipe.to_dict())
        if conflicts:
            raise CheckpointError(
                f"checkpoint: recipe of {checkpoint.folder} differs ({'; '.join(conflicts)}); expected the recipe "
                "that wrote it. Resume with that recipe, or start a new run in another folder."
            )
        if checkpoint.step > self.recipe.step_count:
            raise CheckpointError(
                f"checkpoint: steps={self.recipe.step_count} of the recipe are fewer than the {checkpoint.step} that "
                f"{checkpoint.folder} has made; expected at least as many. Raise steps, or start a new run."
            )
        state = checkpoint.load(self.weights())
        self.optimizer.load_state_dict(regrouped(state["optimizer"], self.optimizer.param_groups))
        self.scheduler.load_state_dict(state["scheduler"])
        follow_groups(self.scheduler)  # of as many groups as there are by now
        if change := changed_length(checkpoint.recipe, self.recipe.to_dict()):
            self._follow_new_schedule(change, checkpoint.step)
        self.progress = Progress.from_dict(state["progress"])
        # What is planned for this process, which may hold another share than the one that wrote the checkpoint.
        self.footprint = Footprint(**{**state["footprint"], "predicted": self.footprint.predicted})
        for method, method_state in zip(self.methods, state.get("methods", []), strict=False):
            method.load_state_dict(self.model, method_state)
        continue_rng(state, self.world.rank, self.world.size, seed=self.recipe.seed, step=self.progress.step)
        self._batches = None
        self._is_first_step = True

    def _follow_new_schedule(self, change: str, step: int) -> None:
        """Take the learning rate from the schedule of the new length; the optimizer's groups hold the old one's."""
        before = self.scheduler.get_last_lr()[0]
        factor = lr_factor(self.recipe.schedule, step, self.recipe.step_count)
        rates = restart(self.scheduler, factor)
        self.notice = (
            f"{change}: from step {step + 1} on, the learning rate is that of a run of {self.recipe.step_count} steps, "
            f"{rates[0]:.3g}; the old schedule had come to {before:.3g}. The {step} steps before keep what they did, "
            "warm-up included, so this is not quite the run that would have had all steps from the start."
        )

    def run(self, callbacks: Sequence[Callback], checkpoints: Checkpoints, stop: StopRequest) -> None:
        """Make all remaining steps of the recipe, with its evaluations and checkpoints.

        Args:
            callbacks: are told what happens, in this order.
            checkpoints: where checkpoints go.
            stop: when requested, the current step is finished, a checkpoint written, and the run ends; when more steps
                are not worth it, it ends as if they were made.

        Raises:
            TrainingInterrupted: after a requested stop.
            NumericsError: if the loss is not finite; names the last checkpoint.
            CheckpointError: if a checkpoint cannot be written.
        """
        recipe, progress, self._stop = self.recipe, self.progress, stop
        evaluated_at = None

        def tell(moment: str, **details: Any) -> None:
            event = Event(
                recipe,
                progress.step,
                self.model,
                self.optimizer,
                words=self.task.words,
                footprint=self.footprint,
                **details,
            )
            for callback in callbacks:
                getattr(callback, moment)(event)

        def write_checkpoint() -> Any:
            weights, state = self.weights(), self.state_dict()
            folder = self.world.on_first(lambda: checkpoints.save(progress.step, weights, state, recipe.to_dict()))
            tell("on_checkpoint", checkpoint=folder)
            return folder

        def judge_start(loss: float | None) -> None:
            if notice := guessing_notice(self.task, loss):
                tell("on_notice", notice=notice)

        def tell_and_judge(moment: str, **details: Any) -> None:
            with self.world.together():
                tell(moment, **details)
            stop.reason = self.world.on_first(lambda: stop.reason)  # who judges has read what the first one wrote

        self._tell_progress = lambda progress: tell("on_progress", share=progress.share, notice=progress.words)
        tell_and_judge("on_start")
        if self.notice:
            tell("on_notice", notice=self.notice)
        try:
            if progress.step == 0 and recipe.evaluate_at_start:
                metrics = self.evaluate()
                tell_and_judge("on_evaluate", metrics=metrics)
                judge_start(metrics.get("held_out_loss"))
            while progress.step < recipe.step_count and not (self._should_stop() or stop.reason):
                metrics = self._step_or_explain(checkpoints)
                tell("on_step", metrics=metrics)
                if progress.step == 1 and not recipe.evaluate_at_start:
                    judge_start(metrics["loss"])
                if _is_due(recipe.evaluate_every, progress.step):
                    tell_and_judge("on_evaluate", metrics=self.evaluate())
                    evaluated_at = progress.step
                if _is_due(recipe.checkpoint_every, progress.step) and not self._should_stop():
                    write_checkpoint()
                check_replicas_at(progress.step, self.world, self.model, self.optimizer, recipe.sharding.check_every)
            if self._should_stop():
                raise TrainingInterrupted(progress.step, write_checkpoint())
            if stop.reason:
                tell("on_notice", notice=stop.reason)
            if evaluated_at != progress.step:
                tell_and_judge("on_evaluate", metrics=self.evaluate())
        finally:
            tell("on_end")

    def bytes_of_process(self) -> dict[str, int]:
        """Return the bytes of this process by category: measured; counted, beside the plan, where it holds rows."""
        if not is_sharded(self.model):
            return {"peak": self.footprint.peak_bytes, **self.footprint.measured}
        planned = self.footprint.predicted.items()
        return {**bytes_at_hand(self.model, self.optimizer), **{f"planned_{name}": count for name, count in planned}}

    def weights(self) -> nn.Module:
        """Return what checkpoints read and write; a collective."""
        return WholeModel(self.model) if is_sharded(self.model) else self.model

    def _should_stop(self) -> bool:
        return self._stop.requested if self.world.size == 1 else self._stops_together

    def _step_or_explain(self, checkpoints: Checkpoints) -> dict[str, float]:
        try:
            with explain_lost_processes():
                return self.step()
        except NumericsError as error:
            last = checkpoints.latest()
            kept = f"The last checkpoint is {last.folder}." if last else "No checkpoint was written yet."
            explained = NumericsError(f"{error} {kept}")
            explained.is_common = error.is_common
            raise explained from error

    def _next_batch(self) -> Batch:
        recipe = self.recipe
        if self._batches is None:
            start, _, _ = self.world.share(recipe.accumulation_steps, self.progress.step)
            self._batches = self.task.batches(
                "train",
                micro_batch_size=recipe.micro_batch_size,
                seed=recipe.seed,
                process_rank=self.world.rank,
                world_size=self.world.size,
                start=start,
            )
        batch = next(self._batches)
        return {name: tensor.to(self.device, non_blocking=True) for name, tensor in batch.items()}

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.recipe.precision != "bf16_autocast":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)


def _is_due(every: int | None, step: int) -> bool:
    return every is not None and step % every == 0
