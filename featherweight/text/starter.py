"""A first recipe for a model and data: what was understood stands in it as comments.

Nothing is measured here; `fw plan` chooses for a budget. The numbers are those that people begin with, each with its
reason beside it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from featherweight.models.facts import ModelFacts
from featherweight.text.survey import Survey

LARGE_PARAMETERS = 2_000_000_000
"""From here on adapters are proposed instead of training every weight."""


@dataclass(frozen=True)
class Habit:
    """The numbers that people begin with on a kind of task."""

    task: str
    whole: str
    """Optimizer where every weight is trained."""
    adapter_lr: str
    rows_per_step: int
    epochs: int
    schedule: str


CHAT = Habit("chat", "{name: galore_8bit, rank: 128, scale: 1.0, lr: 2.0e-4}", "2.0e-4", 16, 2, "cosine")
PREFERENCE = Habit(
    # A tenth of what chats take, and less where all weights move: the model is there and shall not leave its reference.
    "preference", "{name: galore_8bit, rank: 128, scale: 1.0, lr: 5.0e-6}", "5.0e-5", 16, 1, "linear",
)  # fmt: skip
CLASSIFICATION = Habit("classification", "{name: adamw, lr: 5.0e-5}", "2.0e-4", 32, 3, "linear")
"""The rates of BERT's paper for its encoders: a new head on weights that shall stay near where they are."""


@dataclass(frozen=True)
class Choices:
    """What a user asked for beside model and data."""

    columns: Mapping[str, str]
    ignore_columns: tuple[str, ...] = ()
    template: str | None = None
    train_on: str | list[str] = "assistant"


def starter_recipe(model: str, facts: ModelFacts, found: Survey, choices: Choices, *, name: str) -> str:
    """Return the text of a recipe, YAML with comments.

    Args:
        model: its source, as the user wrote it.
        facts: of the model.
        found: of the data, encoded by the model's tokenizer.
        choices: what was asked for.
        name: of the run.
    """
    habit = habit_of(found)
    max_tokens = usual_length(found, facts)
    steps = usual_steps(found)
    micro_batch_size = min(habit.rows_per_step, 32 if max_tokens <= 128 and found.classes else 4)
    # Data of a few rows fill no micro-batch of four.
    micro_batch_size = micro_batch_size if max_tokens <= 1024 and found.rows >= 8 else 1
    is_large = facts.parameters > LARGE_PARAMETERS
    lines = [
        f"# Fine-tunes {facts.name} ({facts.parameters / 1e6:,.0f} M parameters) on {found.source}.",
        f"#   fw train {name}.yaml",
        "#",
        *(f"# {line}" for line in understood(model, found, choices)),
        "",
        f"name: {name}",
        "task:",
        *(
            f"  {key}: {json.dumps(value, ensure_ascii=False)}"
            for key, value in task_of(model, found, choices, max_tokens).items()
        ),
        f"  # {length_comment(found, max_tokens)}",
    ]
    if is_large:
        lines += [
            "methods:",
            "  - lora: {r: 16}  # every weight of a model of this size needs 16 bytes a parameter: see fw plan",
            f"optimizer: {{name: adamw, lr: {habit.adapter_lr}}}",
            "precision: bf16",
        ]
    else:
        lines += [
            f"optimizer: {habit.whole}  # every weight is trained",
        ]
    lines += [
        f"schedule: {{name: {habit.schedule}, warmup_fraction: 0.05}}",
        f"steps: {steps}  # {_passes(habit.epochs)} over the training rows",
        f"micro_batch_size: {micro_batch_size}",
        f"accumulation_steps: {habit.rows_per_step // micro_batch_size}  # {habit.rows_per_step} rows a step",
        f"evaluate_every: {max(1, steps // 4)}",
        "",
    ]
    return "\n".join(lines)


def task_of(model: str, found: Survey, choices: Choices, max_tokens: int) -> dict[str, Any]:
    """Return the part of a recipe that says what is trained on what."""
    task: dict[str, Any] = {"name": habit_of(found).task}
    if found.kind == "judgement":
        task["method"] = "kto"  # the one that learns from answers that were judged one by one
    task |= {"model": model, "data": found.source, "max_tokens": max_tokens}
    for key, value in (
        ("columns", dict(choices.columns)),
        ("ignore_columns", list(choices.ignore_columns)),
        ("template", choices.template),
        ("train_on", None if choices.train_on == "assistant" or found.kind != "conversation" else choices.train_on),
    ):
        if value:
            task[key] = value
    return task


def recipe_for_data(
    model: str, facts: ModelFacts, found: Survey, choices: Choices, *, max_tokens: int | None = None
) -> dict[str, Any]:
    """Return a recipe without methods, for a planner to complete: task, length of a row, steps, rows of a step.

    Args:
        model: its source, as the user wrote it.
        facts: of the model.
        found: of the data, encoded by the model's tokenizer.
        choices: what was asked for.
        max_tokens: of a row; None takes a length that 98 of 100 rows do not exceed.
    """
    habit, steps = habit_of(found), usual_steps(found)
    return {
        "task": task_of(model, found, choices, max_tokens or usual_length(found, facts)),
        "schedule": {"name": habit.schedule, "warmup_fraction": 0.05},
        "steps": steps,
        "micro_batch_size": 1,
        "accumulation_steps": habit.rows_per_step,
        "evaluate_every": max(1, steps // 4),
    }


def understood(model: str, found: Survey, choices: Choices) -> list[str]:
    """Return what was understood of the data, in lines for people."""
    lengths = f"median length {found.quantile(0.5):,} tokens, longest {max(found.lengths, default=0):,}"
    look = f"Look at the rows as the model sees them: fw data inspect {found.source} --model {model}"
    if found.kind == "classification":
        frequent = ", ".join(f"{name} ({count:,})" for name, count in found.classes.most_common(3))
        return [
            f"Understood: {found.rows:,} texts of {len(found.classes):,} classes, the most frequent {frequent}.",
            f"Learnt: the class of each text; {lengths}.",
            look,
        ]
    turns = ", ".join(f"{count:,} turns of {role}" for role, count in found.turns.items())
    return [
        f"Understood: {found.rows:,} rows of the format '{found.format}'; {turns}.",
        f"Learnt: {_learnt(found, choices)}; {lengths}.",
        look,
    ]


def _learnt(found: Survey, choices: Choices) -> str:
    share = f"{sum(found.learnt) / max(1, sum(found.lengths)):.0%} of the tokens"
    if found.kind == "preference":
        return f"that the chosen answer is better than the rejected one, by {share}"
    if found.kind == "judgement":
        return f"that answers are good or bad, by {share}"
    if choices.train_on == "last":
        return f"the last answer of each row, {share}"
    return (
        f"every answer, {share}"
        if choices.train_on == "assistant"
        else f"turns of {', '.join(choices.train_on)}, {share}"
    )


def length_comment(found: Survey, max_tokens: int) -> str:
    """Return what a length means for the rows of the data."""
    longer = found.longer_than(max_tokens)
    fate = {"classification": "lose their end", "conversation": "lose their last turns"}.get(found.kind, "are left out")
    return f"{longer:,} rows are longer than max_tokens and {fate}." if longer else "Every row fits into max_tokens."


def habit_of(found: Survey) -> Habit:
    """Return the numbers to begin with on data of this kind."""
    if found.kind == "classification":
        return CLASSIFICATION
    return PREFERENCE if found.kind in ("preference", "judgement") else CHAT


def _passes(count: int) -> str:
    return "one pass" if count == 1 else f"{count} passes"


def usual_length(found: Survey, facts: ModelFacts) -> int:
    """Return a length that 98 of 100 rows do not exceed, rounded up, within what the model reads."""
    least = 16 if found.kind == "classification" else 64
    wanted = -(-max(found.quantile(0.98), least) // least) * least
    return min(wanted, facts.max_position_embeddings or wanted)


def usual_steps(found: Survey) -> int:
    """Return the steps of the usual passes over the rows that are not held out."""
    habit = habit_of(found)
    return max(1, round(found.rows * 0.95 * habit.epochs / habit.rows_per_step))
