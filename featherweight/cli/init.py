"""`fw init`: look at a model and data, write a first recipe, and say what was understood."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from featherweight.cli import completion
from featherweight.cli.data import (
    Columns,
    IgnoredColumns,
    Template,
    TrainOn,
    columns_of,
    facts_table,
)
from featherweight.cli.examples import read_example
from featherweight.cli.look import look
from featherweight.errors import ConfigError


def init(
    recipe: Annotated[
        Path | None,
        typer.Argument(metavar="[RECIPE]", help="The file to write, such as chat.yaml.", show_default=False),
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", help="A file, a folder of files, or hf:name.", show_default=False)
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            help="The model to fine-tune: a folder, smollm2, or hf name.",
            show_default=False,
            autocompletion=completion.models,
        ),
    ] = None,
    example: Annotated[
        str | None,
        typer.Option(
            "--example",
            help="Write this example instead, such as demo, to RECIPE or NAME.yaml.",
            autocompletion=completion.examples,
        ),
    ] = None,
    template: Template = None,
    column: Columns = None,
    ignore_column: IgnoredColumns = None,
    train_on: TrainOn = "assistant",
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it is there.")] = False,
) -> None:
    """Write a recipe that fine-tunes a model on your data, with comments on what was understood.

    Conversations, preferences and labelled texts are told apart by their columns.

    [bold]Examples[/bold]

    fw init chat.yaml --model ./model --data chats.jsonl

    fw init chat.yaml --model smollm2 --data fragen.csv --column prompt=frage --column response=antwort

    fw init --example demo
    """
    columns = columns_of(column)
    if example is not None:
        given: dict[str, object] = {"--data": data, "--model": model, "--template": template, "--column": column}
        given["--ignore-column"] = ignore_column
        _write_example(example, recipe, [name for name, value in given.items() if value], force)
        return
    if recipe is None or data is None or model is None:
        missing = next(name for name, v in (("RECIPE", recipe), ("--data", data), ("--model", model)) if v is None)
        raise ConfigError(
            f"fw init: {missing} is missing; expected RECIPE, --data and --model. Write: fw init chat.yaml --model "
            "./model --data chats.jsonl, or fw init --example demo."
        )
    _require_new(recipe, force)
    seen = look(
        "fw init",
        model,
        data,
        columns=columns,
        ignore_columns=ignore_column or [],
        template=template,
        train_on=train_on,
    )
    from featherweight.config.files import write_atomically
    from featherweight.text.starter import starter_recipe, usual_length

    write_atomically(recipe, starter_recipe(model, seen.facts, seen.found, seen.choices, name=recipe.stem))
    console = Console()
    console.print(facts_table(seen.found, usual_length(seen.found, seen.facts)))
    console.print(f"\nWrote {recipe}. Next: fw train {recipe}", highlight=False, soft_wrap=True)


def _require_new(recipe: Path, force: bool) -> None:
    if recipe.exists() and not force:
        raise ConfigError(
            f"fw init: recipe={recipe} is there already; expected a new file. Choose another name, or add --force."
        )
    if recipe.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"fw init: recipe={recipe} has another ending; expected .yaml. Write {recipe.stem}.yaml.")


def _write_example(name: str, recipe: Path | None, others: list[str], force: bool) -> None:
    from featherweight.config.files import write_atomically

    if others:
        raise ConfigError(
            f"fw init: {others[0]} is given beside --example {name}, which is whole as it stands; expected one of "
            "them. Leave one out."
        )
    text = read_example(name)
    recipe = recipe or Path(f"{name}.yaml")
    _require_new(recipe, force)
    write_atomically(recipe, text)
    Console().print(f"Wrote {recipe}. Next: fw train {recipe}", highlight=False, markup=False, soft_wrap=True)
