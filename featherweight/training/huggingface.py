"""featherweight's optimizers in the trainers that people already have: transformers.Trainer, TRL, plain loops.

`trainer_optimizer` gives the Trainer its optimizer, with the rates of its TrainingArguments and, if wanted, layer-wise
updates. `ReportCallback` corrects what the Trainer logs about layer-wise updates and writes a report. Importing this
module imports transformers.
"""

import inspect
import math
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers.trainer_callback import TrainerCallback, TrainerControl, TrainerState
from transformers.training_args import TrainingArguments

from featherweight.errors import ConfigError
from featherweight.methods.method import Method, groups_by_methods
from featherweight.optim import (
    Layerwise,
    LayerwiseHandle,
    LowRankOptimizer,
    build_optimizer,
    layerwise,
    parse_optimizer,
)
from featherweight.optim.backward.updates import layerwise_handles
from featherweight.report import Report, format_bytes
from featherweight.training.footprint import predict_bytes
from featherweight.training.run import save_report
from featherweight.training.schedule import follow_groups
from featherweight.unwrap import unwrap_optimizer

_waiting: "WeakKeyDictionary[nn.Module, _Factory]" = WeakKeyDictionary()
"""Factories that do not know their TrainingArguments yet, by the model that they were made for."""

_UNREAD_ARGUMENTS = ("optim", "optim_args", "optim_target_modules")
"""TrainingArguments that choose another optimizer, or its options."""


class TrainerOptimizer(dict[str, Any]):
    """Keyword arguments for a trainer, and what becomes of them; made by `trainer_optimizer`."""

    def __init__(self, factory: "_Factory", arguments: dict[str, Any]) -> None:
        super().__init__(arguments)
        self._factory = factory

    @property
    def optimizer(self) -> LowRankOptimizer | None:
        """The optimizer; None until the trainer has it built."""
        return self._factory.optimizer

    @property
    def handle(self) -> LayerwiseHandle | None:
        """The handle of layer-wise updates; None without them, and until the optimizer is built."""
        return self._factory.handle


def trainer_optimizer(
    name: str,
    model: nn.Module,
    args: TrainingArguments | None = None,
    *,
    trainer: type | None = None,
    accumulation_steps: int | None = None,
    **options: Any,
) -> TrainerOptimizer:
    """Return the keyword argument with which transformers.Trainer, or one of TRL, gets an optimizer of ours.

    What `options` leave out comes from the TrainingArguments: `learning_rate`, `adam_beta1`, `adam_beta2`,
    `adam_epsilon` (where they are not the defaults of TrainingArguments, so that a preset's own stay),
    `weight_decay`, which leaves out norms and biases as the Trainer does, `max_grad_norm` and
    `gradient_accumulation_steps`. They are known from `args`, or from a `ReportCallback` of the same Trainer. `optim`,
    `optim_args` and `optim_target_modules` would have no effect and are refused.

    Trainers that take no `optimizer_cls_and_kwargs` (TRL's DPO, KTO, GRPO, RLOO) are named by `trainer`, and need
    `args`; the optimizer is then built at once.

    Layer-wise updates end with the training if the Trainer has a `ReportCallback`, else with the optimizer or with
    ``result.handle.remove()``.

    Args:
        name: of an optimizer, as in recipes: "adamw", "galore_8bit", "apollo_mini", ...
        model: that of the Trainer. If the Trainer wraps it (`peft_config` of TRL), the wrapped one is trained.
        args: those of the Trainer.
        trainer: class of the trainer, such as `trl.DPOTrainer`; None stands for one that takes what
            transformers.Trainer does.
        accumulation_steps: for `layerwise`; None takes `gradient_accumulation_steps`.
        options: of the optimizer, as in recipes, for example `rank=128`, `layerwise=True`, `clip="per_tensor"`.
    Returns:
        A dict with the key "optimizer_cls_and_kwargs" or "optimizers": ``Trainer(..., **trainer_optimizer(...))``.
        It also gives access to `optimizer` and `handle`.
    Raises:
        ConfigError: for an unknown name or option, or a trainer that takes neither key, at once; when the optimizer is
            built, if no learning rate is known, for TrainingArguments that choose another optimizer, and for layer-wise
            updates with fp16 or an unknown `gradient_accumulation_steps`; at the first step, if a trainer that got
            "optimizers" has wrapped the model in an adapter since.
    Example:
        >>> model = torch.nn.Linear(4, 4)
        >>> list(trainer_optimizer("galore_8bit", model, rank=2, layerwise=True))
        ['optimizer_cls_and_kwargs']
    """
    parse_optimizer({"name": name, **options})
    factory = _Factory(name, options, accumulation_steps)
    if args is not None:
        _refuse_unread(name, args)
        factory.args = args
    if trainer is None or _takes(trainer, "optimizer_cls_and_kwargs"):
        if args is None:
            _waiting[model] = factory
        return TrainerOptimizer(factory, {"optimizer_cls_and_kwargs": (factory, {})})
    if not _takes(trainer, "optimizers"):
        raise ConfigError(
            f"trainer_optimizer: trainer={trainer.__name__} takes neither optimizer_cls_and_kwargs nor optimizers; "
            "expected a trainer of transformers or TRL. Use fw.optim with a loop of your own."
        )
    if args is None:
        raise ConfigError(
            f"trainer_optimizer: args=None, and {trainer.__name__} takes an optimizer that is built already; expected "
            f"its TrainingArguments. Call trainer_optimizer({name!r}, model, args, trainer={trainer.__name__}, ...)."
        )
    return TrainerOptimizer(factory, {"optimizers": (factory.build_before(model, trainer.__name__), None)})


def _takes(trainer: type, keyword: str) -> bool:
    """Say whether a trainer has a keyword argument, its own or one that it hands on to the class above."""
    for kind in trainer.__mro__:
        if "__init__" in vars(kind):
            parameters = inspect.signature(vars(kind)["__init__"]).parameters
            if keyword in parameters:
                return True
            if not any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values()):
                return False
    return False


def _refuse_unread(name: str, args: TrainingArguments) -> None:
    """Refuse arguments that would have no effect, because the Trainer gets an optimizer from us."""
    for field in _UNREAD_ARGUMENTS:
        value, default = getattr(args, field), type(args).__dataclass_fields__[field].default
        if value != default:
            raise ConfigError(
                f"trainer_optimizer: {field}={getattr(value, 'value', value)!r} in the TrainingArguments chooses an "
                f"optimizer of the Trainer, which gets {name!r} from here; expected {default!r}, the default. Leave it "
                f"out and give options here: trainer_optimizer({name!r}, model, args, rank=..., target_modules=...)."
            )


class _Factory:
    """What the Trainer calls, first without arguments, then with its model."""

    def __init__(self, name: str, options: dict[str, Any], accumulation_steps: int | None) -> None:
        self.name, self.options, self.accumulation_steps = name, options, accumulation_steps
        self.args: TrainingArguments | None = None
        self.optimizer: LowRankOptimizer | None = None
        self.handle: LayerwiseHandle | None = None

    def __call__(self) -> Callable[[nn.Module], LowRankOptimizer]:
        return self.build

    def build(self, model: nn.Module) -> LowRankOptimizer:
        """Build the optimizer for the Trainer's model."""
        args = self.args
        for other in [key for key, factory in _waiting.items() if factory is self]:
            del _waiting[other]  # the table must not keep what is built here
        if args is not None:
            _refuse_unread(self.name, args)
        if args is None and "lr" not in self.options:
            raise ConfigError(
                f"trainer_optimizer: '{self.name}' has lr=None, and the TrainingArguments are not known; expected one "
                "of both. Call trainer_optimizer(name, model, args, ...), or add fw.training.ReportCallback() to "
                "callbacks."
            )
        if args is None:
            warnings.warn(
                f"trainer_optimizer: the TrainingArguments are not known to '{self.name}', so their weight_decay, "
                "adam_beta1, adam_beta2 and optim have no effect; options given here do. Call "
                "trainer_optimizer(name, model, args, ...), or add fw.training.ReportCallback() to callbacks.",
                stacklevel=2,
            )
        config = parse_optimizer({"name": self.name, **self._from_arguments(), **self.options})
        if config.layerwise and args is not None and args.fp16:
            raise ConfigError(
                "trainer_optimizer: fp16=True needs a loss scaler, which layer-wise updates cannot have; expected "
                "bf16 or float32. Set bf16=True in the TrainingArguments, or layerwise=False."
            )
        if config.layerwise and args is None and self.accumulation_steps is None:
            raise ConfigError(
                f"trainer_optimizer: '{self.name}' has layerwise=True, and gradient_accumulation_steps is not known, "
                "so that each micro-batch would make a step; expected the TrainingArguments. Call "
                "trainer_optimizer(name, model, args, ...), or add fw.training.ReportCallback() to callbacks."
            )
        seed = 0 if args is None else args.seed
        optimizer = build_optimizer(model, config, seed=seed, decay_vectors=False, regroup=groups_by_methods)
        for handle in layerwise_handles(model):
            handle.remove()  # of an earlier Trainer of this model, whose hooks would take the gradients
        if config.layerwise:
            limit = config.max_grad_norm or (None if args is None else args.max_grad_norm) or math.inf  # logs show it
            steps = self.accumulation_steps or (1 if args is None else args.gradient_accumulation_steps)
            self.handle = layerwise(model, optimizer, accumulation_steps=steps, max_grad_norm=limit, clip=config.clip)
        self.optimizer = optimizer
        return optimizer

    def build_before(self, model: nn.Module, trainer: str) -> LowRankOptimizer:
        """Build the optimizer before its trainer, which may still wrap the model; that is found at the first step."""
        optimizer = self.build(model)
        watched = weakref.ref(model)

        def check(optimizer: LowRankOptimizer, *_: Any) -> None:
            hook.remove()
            model = watched()
            held = {parameter for group in optimizer.param_groups for parameter in group["params"]}
            trained = set() if model is None else {each for each in model.parameters() if each.requires_grad}
            if model is not None and held != trained:
                raise ConfigError(
                    f"trainer_optimizer: {trainer} trains {len(trained)} parameters of the model, of which "
                    f"{len(trained & held)} are in the optimizer that was built before ({len(held)} parameters); "
                    "expected the same. If you gave the trainer a peft_config: call peft.get_peft_model yourself, give "
                    "its result to trainer_optimizer and to the trainer, and leave peft_config out."
                )

        hook = optimizer.register_step_pre_hook(check)
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
    - Layer-wise updates end with the training, so that the model can be trained by anything else; another `train()` of
      the same Trainer begins them again.
    - At the end it writes report.html and report.json into `output_dir`: losses, optimizer state by kind of parameter,
      predicted bytes and, on a GPU, the peak that was allocated.
    """

    def __init__(self) -> None:
        self.report: Report | None = None
        """The report, once training has ended."""
        self.handle: LayerwiseHandle | None = None
        """The handle of layer-wise updates, from the begin of the training."""

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Tell the optimizer that waits for this model what the TrainingArguments are."""
        model = kwargs.get("model")
        for module in () if model is None else model.modules():
            if module in _waiting:
                _waiting.pop(module).args = args

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take note of layer-wise updates; begin them again if an earlier training has ended them."""
        optimizer = _ours(kwargs.get("optimizer"))
        updates = None if optimizer is None else optimizer.layerwise
        if isinstance(updates, Layerwise):
            self.handle = LayerwiseHandle(updates)
        elif self.handle is not None and self.handle.optimizer is optimizer:
            self.handle.attach()

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
        """Write the report, and end layer-wise updates."""
        optimizer, model = _ours(kwargs.get("optimizer")), kwargs.get("model")
        try:
            if optimizer is not None and model is not None and state.is_world_process_zero:
                self._write_report(Path(args.output_dir), state, optimizer, model)
        finally:
            if self.handle is not None:
                self.handle.remove()

    def _write_report(self, folder: Path, state: TrainerState, optimizer: LowRankOptimizer, model: nn.Module) -> None:
        report = Report(f"{folder.name}: {type(optimizer).__name__}")
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
        follow_groups(kwargs.get("lr_scheduler"))


def _ours(optimizer: Any) -> LowRankOptimizer | None:
    """Return our optimizer from inside accelerate's wrapper, or None if it is another one."""
    inner = unwrap_optimizer(optimizer)
    return inner if isinstance(inner, LowRankOptimizer) else None
