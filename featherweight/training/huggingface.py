"""featherweight's optimizers in the trainers that people already have: transformers.Trainer, TRL, plain loops.

`trainer_optimizer` gives the Trainer its optimizer, with the rates of its TrainingArguments and, if wanted, layer-wise
updates. `ReportCallback` corrects what the Trainer logs about layer-wise updates and writes a report. Importing this
module imports transformers.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers.trainer_callback import TrainerCallback, TrainerControl, TrainerState
from transformers.training_args import TrainingArguments

from featherweight.errors import ConfigError
from featherweight.methods.method import Method
from featherweight.optim import LowRankOptimizer, build_optimizer, layerwise, parse_optimizer
from featherweight.optim.backward.updates import layerwise_handles
from featherweight.report import Report, format_bytes
from featherweight.training.footprint import predict_bytes
from featherweight.training.run import save_report

_waiting: "WeakKeyDictionary[nn.Module, _Factory]" = WeakKeyDictionary()
"""Factories that do not know their TrainingArguments yet, by the model that they were made for."""


def trainer_optimizer(
    name: str,
    model: nn.Module,
    args: TrainingArguments | None = None,
    *,
    accumulation_steps: int | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Return the keyword argument with which transformers.Trainer (and TRL's trainers) builds an optimizer of ours.

    What `options` leave out comes from the TrainingArguments: `learning_rate`, `adam_beta1`, `adam_beta2`,
    `adam_epsilon` (where they are not the defaults of TrainingArguments, so that a preset's own stay),
    `weight_decay`, which leaves out norms and biases as the Trainer does, `max_grad_norm` and
    `gradient_accumulation_steps`. They are known from `args`, or from a `ReportCallback` of the same Trainer.

    Args:
        name: of an optimizer, as in recipes: "adamw", "galore_8bit", "apollo_mini", ...
        model: that of the Trainer. If the Trainer wraps it (`peft_config` of TRL), the wrapped one is trained.
        args: those of the Trainer.
        accumulation_steps: for `layerwise`; None takes `gradient_accumulation_steps`.
        options: of the optimizer, as in recipes, for example `rank=128`, `layerwise=True`, `clip="per_tensor"`.
    Returns:
        A dict with the key "optimizer_cls_and_kwargs"; write ``Trainer(..., **trainer_optimizer(...))``.
    Raises:
        ConfigError: for an unknown name or option, at once; when the optimizer is built, if no learning rate is
            known, or for fp16 with layer-wise updates.
    Example:
        >>> model = torch.nn.Linear(4, 4)
        >>> list(trainer_optimizer("galore_8bit", model, rank=2, layerwise=True))
        ['optimizer_cls_and_kwargs']
    """
    parse_optimizer({"name": name, **options})
    factory = _Factory(name, options, accumulation_steps)
    if args is None:
        _waiting[model] = factory
    else:
        factory.args = args
    return {"optimizer_cls_and_kwargs": (factory, {})}


class _Factory:
    """What the Trainer calls, first without arguments, then with its model."""

    def __init__(self, name: str, options: dict[str, Any], accumulation_steps: int | None) -> None:
        self.name, self.options, self.accumulation_steps = name, options, accumulation_steps
        self.args: TrainingArguments | None = None

    def __call__(self) -> Callable[[nn.Module], LowRankOptimizer]:
        return self.build

    def build(self, model: nn.Module) -> LowRankOptimizer:
        """Build the optimizer for the Trainer's model."""
        args = self.args
        if args is None and "lr" not in self.options:
            raise ConfigError(
                f"trainer_optimizer: '{self.name}' has lr=None, and the TrainingArguments are not known; expected one "
                "of both. Call trainer_optimizer(name, model, args, ...), or add fw.training.ReportCallback() to "
                "callbacks."
            )
        config = parse_optimizer({"name": self.name, **self._from_arguments(), **self.options})
        if config.layerwise and args is not None and args.fp16:
            raise ConfigError(
                "trainer_optimizer: fp16=True needs a loss scaler, which layer-wise updates cannot have; expected "
                "bf16 or float32. Set bf16=True in the TrainingArguments, or layerwise=False."
            )
        optimizer = build_optimizer(model, config, seed=0 if args is None else args.seed, decay_vectors=False)
        for handle in layerwise_handles(model):
            handle.remove()  # of an earlier Trainer of this model, whose hooks would take the gradients
        if config.layerwise:
            limit = config.max_grad_norm or (None if args is None else args.max_grad_norm) or math.inf  # logs show it
            steps = self.accumulation_steps or (1 if args is None else args.gradient_accumulation_steps)
            layerwise(model, optimizer, accumulation_steps=steps, max_grad_norm=limit, clip=config.clip)
        return optimizer

    def _from_arguments(self) -> dict[str, Any]:
        """Return the options that the TrainingArguments give."""
        args = self.args
        if args is None:
            return {}
        found: dict[str, Any] = {"lr": args.learning_rate, "weight_decay": args.weight_decay}
        if (args.adam_beta1, args.adam_beta2) != (_default("adam_beta1"), _default("adam_beta2")):
            found["betas"] = (args.adam_beta1, args.adam_beta2)
        if args.adam_epsilon != _default("adam_epsilon"):
            found["eps"] = args.adam_epsilon
        return found


def _default(field: str) -> Any:
    return TrainingArguments.__dataclass_fields__[field].default


class ReportCallback(TrainerCallback):
    """Completes what transformers.Trainer logs, and writes a report of the run.

    - The Trainer looks for gradients after the backward pass, where a layer-wise optimizer has left none: it would log
      a `grad_norm` of 0. The callback puts the true one there, and `skipped_steps`, into the logs that follow it
      (progress bar, printed lines, `trainer.state.log_history`). Loggers that stand before it in the list see the 0.
    - It gives `trainer_optimizer` the TrainingArguments of its Trainer.
    - At the end it writes report.html and report.json into `output_dir`: losses, optimizer state by kind of parameter,
      predicted bytes and, on a GPU, the peak that was allocated.
    """

    def __init__(self) -> None:
        self.report: Report | None = None
        """The report, once training has ended."""

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Tell the optimizer that waits for this model what the TrainingArguments are."""
        model = kwargs.get("model")
        for module in () if model is None else model.modules():
            if module in _waiting:
                _waiting.pop(module).args = args

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Correct the norm of the gradient, and say how many steps of single tensors were left out."""
        optimizer = _ours(kwargs.get("optimizer"))
        if optimizer is None or logs is None or "loss" not in logs:
            return
        targets = [logs, *state.log_history[-1:]]
        for target in targets:
            if optimizer.layerwise is not None and optimizer.layerwise.grad_norm is not None:
                target["grad_norm"] = optimizer.layerwise.grad_norm
            if optimizer.skipped_steps:
                target["skipped_steps"] = optimizer.skipped_steps

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write the report."""
        optimizer, model = _ours(kwargs.get("optimizer")), kwargs.get("model")
        if optimizer is None or model is None or not state.is_world_process_zero:
            return
        report = Report(f"{Path(args.output_dir).name}: {type(optimizer).__name__}")
        curves = {}
        for key, label in (("loss", "training"), ("eval_loss", "held out")):
            points = [(line["step"], line[key]) for line in state.log_history if key in line]
            if points:
                curves[label] = ([step for step, _ in points], [loss for _, loss in points])
        if curves:
            report.add_curves("Loss", "optimizer steps", "loss", curves)
        predicted = predict_bytes(model, optimizer)
        facts = {f"{name.replace('_', ' ')} (predicted)": format_bytes(size) for name, size in predicted.items()}
        if torch.cuda.is_available():
            facts["peak allocated"] = format_bytes(torch.cuda.max_memory_allocated())
        report.add_facts({"optimizer steps": state.global_step, **facts}, title="Run")
        report.sections += optimizer.report().sections
        folder = Path(args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        save_report(report, folder)
        self.report = report


class MethodCallback(TrainerCallback):
    """Tells a method of each optimizer step of transformers.Trainer, as InRank needs it to grow its ranks.

    Args:
        method: that was applied to the model before the Trainer was made.
    """

    def __init__(self, method: Method) -> None:
        self.method = method

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Let the method do what is due; the Trainer counts the step only afterwards."""
        self.method.after_step(kwargs["model"], kwargs["optimizer"], state.global_step + 1)


def _ours(optimizer: Any) -> LowRankOptimizer | None:
    """Return our optimizer from inside accelerate's wrapper."""
    while not isinstance(optimizer, LowRankOptimizer):
        optimizer = getattr(optimizer, "optimizer", None)
        if optimizer is None:
            return None
    return optimizer
