"""The recipe: one file that says everything about a run, from the data to the seed.

A recipe is data. What its names stand for is looked up in the registries of tasks and optimizers when the run is built.
"""

import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from featherweight.config import Config
from featherweight.distributed.options import ShardingOptions
from featherweight.errors import ConfigError
from featherweight.training.best import BestMetric, EarlyStop
from featherweight.training.schedule import Schedule
from featherweight.training.task import Task, task_options, tasks
from featherweight.training.tracker_names import require_trackers

if TYPE_CHECKING:
    from featherweight.methods.method import Method
    from featherweight.methods.options import MethodOptions
    from featherweight.optim.named import OptimizerConfig


class Recipe(Config):
    """A complete, serialisable description of a run; on the same machine it gives the same weights, bit by bit."""

    name: str | None = None
    """Opens the name of the run folder; None takes the name of the recipe file."""
    task: dict[str, Any]
    """The workload: `name` and its own options, for example {name: text, model: smollm2, corpus: english}."""
    optimizer: dict[str, Any] = {"name": "adamw"}
    """The optimizer: `name` and its own options such as lr and rank; a name alone takes the defaults. On the command
    line optimizer=NAME keeps the options that both names share."""
    methods: list[Any] = []
    """Changes of the model, in order: each a name, or one name with its options: {mst: {checkpoint: offload}}. What the
    optimizer stands for (q_galore: int8) comes first, unless it is listed here with options of its own."""
    schedule: Schedule = Schedule()
    """The learning rate over the steps."""
    steps: int | None = Field(default=None, gt=0)
    """Optimizer steps of the whole run; either these or `epochs` are given."""
    epochs: float | None = Field(default=None, gt=0)
    """Passes over the training rows instead; parts of a pass are fine. The run has the steps that see them all."""
    micro_batch_size: int = Field(gt=0)
    """Samples of one forward and backward pass."""
    accumulation_steps: int = Field(default=1, gt=0)
    """Micro-batches that one optimizer step sums up, over all processes."""
    max_grad_norm: float | None = Field(default=1.0, gt=0)
    """Gradients are scaled down to this norm over all parameters; None never clips."""
    sharding: ShardingOptions = ShardingOptions()
    """How several processes train one model: auto, none, ddp, fsdp2, hsdp, or their options (docs/distributed.md)."""
    precision: Literal["fp32", "bf16", "bf16_autocast"] = "fp32"
    """fp32 weights; bf16 weights (written with stochastic rounding); or fp32 weights with matrix products in bf16."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Of everything random: new weights, order of the data, dropout, rounding."""
    evaluate_at_start: bool = True
    """Measure the held-out loss before the first step."""
    evaluate_every: int | None = Field(default=None, gt=0)
    """Optimizer steps between evaluations; None evaluates at the end alone."""
    checkpoint_every: int | None = Field(default=None, gt=0)
    """Optimizer steps between checkpoints; None writes one only on an interruption."""
    checkpoint_at_end: bool = True
    """Write one after the last step, too, from which `--resume steps=...` goes on; comparisons and sweeps do not."""
    keep_checkpoints: int = Field(default=2, gt=0)
    """How many of the newest checkpoints stay on the disk."""
    save_best: bool | BestMetric = False
    """Keep the weights of the best evaluation, and write those as the model: true, or {metric, direction}."""
    early_stopping: EarlyStop | None = None
    """End the run when evaluations stop getting better: {patience, threshold, metric, direction}; null never does."""
    save_model: bool = True
    """Write the trained model into the run folder."""
    log_every: int = Field(default=10, gt=0)
    """Optimizer steps between lines of progress when the output is no terminal, and between entries of the trackers."""
    memory_steps: list[Annotated[int, Field(gt=0)]] = [2, 3]
    """Steps (the first is 1) whose memory is measured by category; they are slower and stay out of the speed."""
    trackers: list[str] = []
    """Where else to log: names of accelerate's trackers, such as tensorboard."""
    compare: dict[str, dict[str, Any]] = {}
    """Optimizer options for each row of `fw compare`; a row whose name is no optimizer gives its `name` among them, and
    one with methods of its own its `methods`. A row without an entry takes the options of `optimizer` if it is of the
    same kind, else its defaults."""

    @field_validator("name")
    @classmethod
    def _names_a_folder(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"\w[\w.-]*", value):
            raise ValueError(
                "is no name for a folder everywhere; expected letters, digits, '_', '.' and '-', the first one none of "
                "the last two. Change it."
            )
        return value

    @field_validator("task", "optimizer", mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @field_validator("sharding", mode="before")
    @classmethod
    def _kind_alone(cls, value: Any) -> Any:
        return {"kind": value} if isinstance(value, str) else value

    @field_validator("task", "optimizer")
    @classmethod
    def _has_a_name(cls, value: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(value.get("name"), str):
            raise ValueError("has no name; expected a mapping with the key 'name'. Add 'name: ...' to it.")
        return value

    @field_validator("methods")
    @classmethod
    def _methods_exist(cls, value: list[Any]) -> list[Any]:
        if value:
            from featherweight.methods.named import parse_method_options

            parse_method_options(value)
        return value

    @model_validator(mode="after")
    def _one_length(self) -> "Recipe":
        if (self.steps is None) == (self.epochs is None):
            state = "are both missing" if self.steps is None else "are both given"
            raise ValueError(
                f"steps={self.steps} and epochs={self.epochs} {state}; expected one of the two. Set steps=500, or "
                "epochs=3 (and the other to null)."
            )
        return self

    @model_validator(mode="after")
    def _evaluations_come(self) -> "Recipe":
        for name in ("save_best", "early_stopping"):
            if getattr(self, name) and self.evaluate_every is None:
                raise ValueError(
                    f"{name} compares evaluations, and evaluate_every=None makes only the last one; expected some on "
                    "the way. Set evaluate_every, for example to a tenth of the steps."
                )
        return self

    @model_validator(mode="after")
    def _warmup_fits(self) -> "Recipe":
        if self.steps is not None and self.schedule.warmup(self.steps) > self.steps:
            raise ValueError(
                f"schedule.warmup_steps={self.schedule.warmup_steps} is longer than the run; "
                f"expected at most steps={self.steps}. Shorten the warm-up."
            )
        return self

    def override(self, assignments: Iterable[str], *, where: str | None = None) -> Self:
        """Return a copy with some settings changed; see `Config.override`. steps and epochs replace each other.

        ``optimizer=NAME`` keeps the options that the named optimizer shares with the present one (`inherited_options`);
        it acts first, so that ``optimizer.rank=64`` counts wherever it stands.
        """
        named, others = [], []
        assignments = list(assignments)
        keys = {assignment.partition("=")[0].strip() for assignment in assignments}
        for key, other in (("steps", "epochs"), ("epochs", "steps")):
            if key in keys and other not in keys:
                named.append(f"{other}=null")
        for assignment in assignments:
            key, _, name = (part.strip() for part in assignment.partition("="))
            if key == "optimizer" and name.isidentifier():
                from featherweight.optim.named import inherited_options

                named.append(f"optimizer={json.dumps(inherited_options(name, self.optimizer))}")
            else:
                others.append(assignment)
        return super().override([*named, *others], where=where)

    @property
    def step_count(self) -> int:
        """Optimizer steps of the whole run, of a recipe that `with_steps` has been through."""
        assert self.steps is not None, "epochs become steps where the data are known"
        return self.steps

    def with_steps(self, row_count: int | None) -> Self:
        """Return the recipe with `steps` in the place of `epochs`: the fewest that see so many passes of rows.

        Micro-batches run on over the ends of epochs, so only the last step may see rows beyond them.

        Args:
            row_count: training rows of one epoch; None if nobody knows them, as of a stream.
        Raises:
            ConfigError: if there are epochs to count and no rows.
        Example:
            >>> Recipe(task="text", epochs=2, micro_batch_size=4, accumulation_steps=2).with_steps(30).steps
            8
        """
        if self.epochs is None:
            return self
        if row_count is None:
            raise ConfigError(
                f"recipe: epochs={self.epochs:g} cannot be counted, because task={self.task['name']} reads data "
                "without a known end; expected rows that can be counted. Set steps instead of epochs."
            )
        samples = self.micro_batch_size * self.accumulation_steps
        steps = max(1, math.ceil(self.epochs * row_count / samples))
        return self.parse({**self.to_dict(), "steps": steps, "epochs": None}, where="recipe")

    def build_methods(self) -> "list[Method]":
        """Return the methods of the recipe, in order: first those that its optimizer stands for, then those it names.

        Raises:
            ConfigError: as `method_options`.
        """
        from featherweight.methods import parse_methods

        self.method_options()
        return parse_methods([*self._implied_methods(), *self.methods])

    def method_options(self) -> "list[MethodOptions]":
        """Return the strict options of the methods of `build_methods`, which are judged without torch.

        Raises:
            ConfigError: if one needs layer-wise updates and the optimizer makes none, or they do not go together.
        """
        from featherweight.methods.named import check_company, parse_method_options

        implied, named, is_layerwise = self._implied_methods(), self.method_names, self.optimizer_config().layerwise
        options = parse_method_options([*implied, *self.methods])
        if "base4bit" in named:
            check_company(options)
        for name, one in zip([*implied, *named], options, strict=True):
            if one.needs_calibration:
                raise ConfigError(
                    f"recipe methods: {name} as it stands needs calibration data, which a recipe has no place for; "
                    "expected a method that looks at weights alone. Run fw compress --calibration first, and train the "
                    "folder that it writes."
                )
            if one.needs_layerwise and not is_layerwise:
                raise ConfigError(
                    f"recipe methods: {name} takes effect with layer-wise updates alone; expected layerwise=True of "
                    f"the optimizer instead of {is_layerwise}. Set optimizer.layerwise=true, or leave {name} out."
                )
        return options

    def _implied_methods(self) -> list[str]:
        """Return the methods that the optimizer stands for and that the recipe does not list itself."""
        from featherweight.optim.named import optimizers

        methods = optimizers.get(self.optimizer_config().name).methods
        return [name for name in methods if name not in self.method_names]

    @property
    def method_names(self) -> list[str]:
        """Names of the methods that the recipe lists, in order."""
        return [entry if isinstance(entry, str) else next(iter(entry)) for entry in self.methods]

    def build_task(self) -> Task:
        """Build the workload that the recipe names.

        Raises:
            ConfigError: if the name is unknown, an option is not allowed, or training should not begin with the weights
            that it names.
        """
        self.check_weights()
        return self.task_class(self.task_config(), seed=self.seed)

    def check_weights(self) -> None:
        """Refuse weights to begin with that nobody chose, and methods that need a trained model on random ones.

        Raises:
            ConfigError: says what to put into the recipe.
        """
        adapters = [one.title for one in self.method_options() if one.needs_pretrained]
        self.task_class.check_weights(self.task_config(), adapters)

    @property
    def task_class(self) -> type[Task]:
        """The class of the workload that the recipe names; ConfigError if the name is unknown."""
        return tasks.get(self.task["name"])

    def length_key(self) -> str:
        """Return the key of the recipe that says how long a row is, such as task.seq_len.

        Raises:
            ConfigError: if rows of its task have no length.
        """
        if self.task_class.length_key is None:
            raise ConfigError(
                f"recipe: task={self.task['name']} has no rows of some length; expected a task such as text. Plan it "
                "without a length: fw.estimate_memory(None, recipe)."
            )
        return f"task.{self.task_class.length_key}"

    def task_config(self) -> Config:
        """Return the strict options of the workload that the recipe names.

        Raises:
            ConfigError: if the name is unknown or an option is not allowed.
        """
        options = {key: value for key, value in self.task.items() if key != "name"}
        return task_options(self.task["name"]).parse(options, where="recipe task")

    def check_options(self) -> None:
        """Refuse what task, optimizer and methods do not allow; of what this package brings, without torch.

        Raises:
            ConfigError: if a name is unknown or an option is not allowed.
        """
        self.task_config()
        self.method_options()
        require_trackers(self.trackers)

    def optimizer_config(self) -> "OptimizerConfig":
        """Return the strict options of the optimizer that the recipe names.

        Raises:
            ConfigError: if the name is unknown or an option is not allowed.
        """
        from featherweight.optim.named import parse_optimizer

        return parse_optimizer(self.optimizer)


RecipeSource = Recipe | Mapping[str, Any] | str | os.PathLike[str]
"""What the functions of this package take for a recipe: the object, a mapping, or the path of a YAML or JSON file."""


def load_recipe(source: RecipeSource, overrides: Iterable[str] = ()) -> Recipe:
    """Return the recipe of an object, a mapping, or a YAML or JSON file, with some keys changed.

    Args:
        source: recipe, mapping or path.
        overrides: "key=value" assignments such as "optimizer.rank=64".

    Raises:
        ConfigError: if the file cannot be read or a setting is not allowed.
    """
    if isinstance(source, Recipe):
        recipe, where = source, "recipe"
    elif isinstance(source, Mapping):
        recipe, where = Recipe.parse(source, where="recipe"), "recipe"
    else:
        recipe, where = Recipe.from_file(source), os.fspath(source)
    return recipe.override(overrides, where=where)


def method_recipe(recipe: Recipe, method: str) -> Recipe:
    """Return the recipe with the optimizer of one row of a comparison.

    Without an entry under `compare` it takes over the options of `optimizer` as `inherited_options` says.

    Example:
        >>> rows = {"small": {"name": "galore", "rank": 8}}
        >>> rows["core"] = {"name": "galore", "layerwise": True, "methods": ["core_gradient"]}
        >>> base = Recipe(task="text", steps=1, micro_batch_size=1, compare=rows)
        >>> method_recipe(base, "small").optimizer
        {'name': 'galore', 'rank': 8}
        >>> method_recipe(base, "adamw").optimizer
        {'name': 'adamw'}
        >>> method_recipe(base, "core").methods
        ['core_gradient']
    """
    from featherweight.optim.named import inherited_options

    if method in recipe.compare:
        options = {"name": method, **recipe.compare[method]}
    else:
        options = inherited_options(method, recipe.optimizer)
    methods = options.pop("methods", recipe.methods)
    return Recipe.parse({**recipe.to_dict(), "optimizer": options, "methods": methods}, where="recipe")
