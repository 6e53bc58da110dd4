"""A first recipe for a model and chat data: what was understood stands in it as comments.

Nothing is measured here; `fw plan` chooses for a budget. The numbers are those that people begin with, each with its
reason beside it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from featherweight.models.facts import ModelFacts
from featherweight.text.survey import Survey

EPOCHS = 2
ROWS_PER_STEP = 16
LARGE_PARAMETERS = 2_000_000_000
"""From here on adapters are proposed instead of training every weight."""


@dataclass(frozen=True)
class Choices:
    """What a user asked for beside model and data."""

    columns: Mapping[str, str]
    ignore_columns: tuple[str, ...] = ()
    template: str | None = None
    train_on: str = "assistant"


def starter_recipe(model: str, facts: ModelFacts, found: Survey, choices: Choices, *, name: str) -> str:
    """Return the text of a recipe, YAML with comments.

    Args:
        model: its source, as the user wrote it.
        facts: of the model.
        found: of the data, encoded by the model's tokenizer.
        choices: what was asked for.
        name: of the run.
    """
    max_tokens = usual_length(found, facts)
    steps = usual_steps(found)
    # Data of a few rows fill no micro-batch of four.
    micro_batch_size = 4 if max_tokens <= 1024 and found.rows >= 8 else 1
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
            "optimizer: {name: adamw, lr: 2.0e-4}",
            "precision: bf16",
        ]
    else:
        lines += [
            "optimizer: {name: galore_8bit, rank: 128, scale: 1.0, lr: 2.0e-4}  # every weight is trained",
        ]
    lines += [
        "schedule: {name: cosine, warmup_fraction: 0.05}",
        f"steps: {steps}  # {EPOCHS} passes over the training rows",
        f"micro_batch_size: {micro_batch_size}",
        f"accumulation_steps: {ROWS_PER_STEP // micro_batch_size}  # {ROWS_PER_STEP} rows a step",
        f"evaluate_every: {max(1, steps // 4)}",
        "",
    ]
    return "\n".join(lines)


def task_of(model: str, found: Survey, choices: Choices, max_tokens: int) -> dict[str, Any]:
    """Return the part of a recipe that says what is trained on what."""
    task: dict[str, Any] = {"name": "preference" if found.kind in ("preference", "judgement") else "chat"}
    if found.kind == "judgement":
        task["method"] = "kto"  # the one that learns from answers that were judged one by one
    task |= {"model": model, "data": found.source, "max_tokens": max_tokens}
    for key, value in (
        ("columns", dict(choices.columns)),
        ("ignore_columns", list(choices.ignore_columns)),
        ("template", choices.template),
        ("train_on", None if choices.train_on == "assistant" else choices.train_on),
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
    steps = usual_steps(found)
    return {
        "task": task_of(model, found, choices, max_tokens or usual_length(found, facts)),
        "schedule": {"name": "cosine", "warmup_fraction": 0.05},
        "steps": steps,
        "micro_batch_size": 1,
        "accumulation_steps": ROWS_PER_STEP,
        "evaluate_every": max(1, steps // 4),
    }


def understood(model: str, found: Survey, choices: Choices) -> list[str]:
    """Return what was understood of the data, in lines for people."""
    share = sum(found.learnt) / max(1, sum(found.lengths))
    turns = ", ".join(f"{count:,} turns of {role}" for role, count in found.turns.items())
    learnt = "the last answer of each row" if choices.train_on == "last" else "every answer"
    return [
        f"Understood: {found.rows:,} rows of the format '{found.format}'; {turns}.",
        f"Learnt: {learnt}, {share:.0%} of the tokens; median length {found.quantile(0.5):,}, longest "
        f"{max(found.lengths, default=0):,}.",
        f"Look at the rows as the model sees them: fw data inspect {found.source} --model {model}",
    ]


def length_comment(found: Survey, max_tokens: int) -> str:
    """Return what a length means for the rows of the data."""
    longer = found.longer_than(max_tokens)
    return (
        f"{longer:,} rows are longer than max_tokens and lose their last turns."
        if longer
        else "Every row fits into max_tokens."
    )


def usual_length(found: Survey, facts: ModelFacts) -> int:
    """Return a length that 98 of 100 rows do not exceed, rounded up, within what the model reads."""
    wanted = -(-max(found.quantile(0.98), 64) // 64) * 64
    return min(wanted, facts.max_position_embeddings or wanted)


def usual_steps(found: Survey) -> int:
    """Return the steps of `EPOCHS` passes over the rows that are not held out."""
    return max(1, round(found.rows * 0.95 * EPOCHS / ROWS_PER_STEP))
