"""`fw init`: look at a model and data, write a first recipe, and say what was understood."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from featherweight.cli.data import (
    Columns,
    IgnoredColumns,
    Template,
    columns_of,
    facts_table,
    require_choice,
    require_data,
    tokenizer_of,
)
from featherweight.errors import ConfigError


def init(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="The file to write, such as chat.yaml.")],
    data: Annotated[str, typer.Option("--data", help="A file, a folder of files, or hf:name.")],
    model: Annotated[str, typer.Option("--model", help="The model to fine-tune: a folder, smollm2, or hf name.")],
    template: Template = None,
    column: Columns = None,
    ignore_column: IgnoredColumns = None,
    train_on: Annotated[str, typer.Option("--train-on", help="assistant (all its turns) or last.")] = "assistant",
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it is there.")] = False,
) -> None:
    """Write a recipe that fine-tunes a model on chat data, with comments on what was understood.

    [bold]Examples[/bold]

    fw init chat.yaml --model ./model --data chats.jsonl

    fw init chat.yaml --model smollm2 --data fragen.csv --column prompt=frage --column response=antwort
    """
    columns = columns_of(column)
    require_choice("--train-on", train_on, ("assistant", "last"))
    if recipe.exists() and not force:
        raise ConfigError(
            f"fw init: recipe={recipe} is there already; expected a new file. Choose another name, or add --force."
        )
    if recipe.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"fw init: recipe={recipe} has another ending; expected .yaml. Write {recipe.stem}.yaml.")
    require_data(data)
    from featherweight.text.survey import survey, understand_source

    ignored = ignore_column or []
    read = understand_source(data, columns=columns, ignore_columns=ignored)
    if read.format.name == "text":
        raise ConfigError(
            f"fw init: data={data} holds documents, no conversations; expected turns. Train on documents by a recipe "
            "of the task text: task: {name: text, corpus: " + data + "}."
        )
    from featherweight.config.files import write_atomically
    from featherweight.models.facts import model_facts
    from featherweight.text.starter import Choices, starter_recipe

    tokenizer = tokenizer_of(model, template)
    facts = model_facts(model, tokenizer=tokenizer)
    found = survey(data, tokenizer, columns=columns, ignore_columns=ignored, last_only=train_on == "last", examples=0)
    choices = Choices(columns, tuple(ignored), template, train_on)
    text = starter_recipe(model, facts, found, choices, name=recipe.stem)
    write_atomically(recipe, text)
    console = Console()
    console.print(facts_table(found, _max_tokens(text)))
    console.print(f"\nWrote {recipe}. Next: fw train {recipe}", highlight=False, soft_wrap=True)


def _max_tokens(text: str) -> int:
    line = next(line for line in text.splitlines() if line.strip().startswith("max_tokens:"))
    return int(line.split(":")[1])
