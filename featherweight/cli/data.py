"""`fw data inspect`: what a file of chat data holds, and what a model would learn from it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from featherweight.cli.given import has_no_template
from featherweight.cli.screen import AsJson, print_json
from featherweight.errors import ConfigError

if TYPE_CHECKING:
    from featherweight.text.survey import Example, Survey

app = typer.Typer(name="data", no_args_is_help=True, help="Look at data before they are trained on.")

Columns = Annotated[
    list[str] | None,
    typer.Option("--column", help="A column of another name, as field=column: prompt=frage.", show_default=False),
]
IgnoredColumns = Annotated[
    list[str] | None,
    typer.Option("--ignore-column", help="A column with text to leave out on purpose.", show_default=False),
]
Template = Annotated[
    str | None, typer.Option("--template", help="Chat template of a base model: chatml or alpaca.", show_default=False)
]

TrainOn = Annotated[str, typer.Option("--train-on", help="assistant (all its turns), last, or roles: assistant,tool.")]


@app.callback()
def _describe() -> None:
    """Look at data before they are trained on."""


@app.command("inspect")
def inspect(
    data: Annotated[str, typer.Argument(metavar="DATA", help="A file, a folder of files, or hf:name.")],
    model: Annotated[
        str | None, typer.Option("--model", help="Whose tokenizer and template to read with.", show_default=False)
    ] = None,
    template: Template = None,
    column: Columns = None,
    ignore_column: IgnoredColumns = None,
    train_on: TrainOn = "assistant",
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=8, help="Rows longer than this are counted.")] = 1024,
    examples: Annotated[int, typer.Option("--examples", min=0, help="Rows to show.")] = 3,
    as_json: AsJson = False,
) -> None:
    """Show the format, counts and lengths of a data set, and rows as the model will see them.

    Words that are learnt are green, masked ones are grey. Nothing is trained or written.

    [bold]Examples[/bold]

    fw data inspect chats.jsonl --model ./model

    fw data inspect fragen.csv --column prompt=frage --column response=antwort --ignore-column quelle
    """
    columns = columns_of(column)
    roles = roles_of(train_on)
    require_data(data)
    from featherweight.text.survey import survey, understand_source

    # What is not understood is refused before the tokenizer is loaded.
    read = understand_source(data, columns=columns, ignore_columns=ignore_column or [])
    has_turns = read.format.name not in ("classification", "text")
    tokenizer = None if model is None else tokenizer_of(model, template, has_turns=has_turns)
    found = survey(
        data,
        tokenizer,
        columns=columns,
        ignore_columns=ignore_column or [],
        train_on=roles,
        examples=examples,
    )
    if as_json:
        print_json(as_dictionary(found, max_tokens))
        return
    console = Console()
    console.print(facts_table(found, max_tokens))
    for example in found.examples:
        console.print(drawn(example), soft_wrap=True)
    if model is None:
        console.print("Lengths and rows as a model sees them: fw data inspect ... --model ./model", highlight=False)


def columns_of(pairs: list[str] | None) -> dict[str, str]:
    """Return field=column pairs as a mapping.

    Raises:
        ConfigError: for a word that is no pair.
    """
    wrong = next((pair for pair in pairs or [] if "=" not in pair), None)
    if wrong is not None:
        raise ConfigError(
            f"fw data: --column={wrong} is no pair; expected field=column. Write, for example: --column prompt=frage"
        )
    return dict(pair.split("=", 1) for pair in pairs or [])


def roles_of(train_on: str) -> str | list[str]:
    """Return what `--train-on` says, as a recipe writes it.

    Raises:
        ConfigError: for a word that is no role.
    """
    if train_on in ("assistant", "last"):
        return train_on
    roles = [one.strip() for one in train_on.strip("[]").split(",")]
    if not set(roles) <= {"assistant", "user", "tool", "system"}:
        raise ConfigError(
            f"fw data: --train-on={train_on} is unknown; expected assistant or last, or roles such as assistant,tool. "
            "Choose one."
        )
    return roles


def require_data(data: str) -> None:
    """Refuse data that are not there, before anything is imported."""
    if not data.startswith("hf:") and not Path(data).expanduser().exists():
        from featherweight.text.rows import read_rows

        next(read_rows(data))


def tokenizer_of(model: str, template: str | None, *, command: str = "fw data", has_turns: bool = True) -> Any:
    """Return a model's tokenizer, for data with turns with the template that is asked for."""
    if has_turns and template is None and has_no_template(model):
        raise ConfigError(
            f"{command}: model={model} has no chat template (a base model); expected one. Choose one: --template "
            "chatml or --template alpaca."
        )
    from featherweight.models.load import load_tokenizer
    from featherweight.models.templates import choose_template

    tokenizer = load_tokenizer(model)
    if has_turns:
        choose_template(tokenizer, template, where=command)
    return tokenizer


def as_dictionary(found: "Survey", max_tokens: int) -> dict[str, Any]:
    """Return a survey as plain values."""
    facts: dict[str, Any] = {
        "source": found.source,
        "format": found.format,
        "kind": found.kind,
        "columns": dict(found.columns),
        "ignored_columns": list(found.ignored),
        "rows": found.rows,
        "turns": dict(found.turns),
        "classes": dict(found.classes),
        "rows_with_system": found.with_system,
        "rows_with_tools": found.with_tools,
    }
    if found.lengths:
        facts |= {
            "tokens": sum(found.lengths),
            "learnt_tokens": sum(found.learnt),
            "median_tokens": found.quantile(0.5),
            "longest_tokens": max(found.lengths),
            "longer_than_max_tokens": found.longer_than(max_tokens),
            "max_tokens": max_tokens,
        }
    return facts


def facts_table(found: "Survey", max_tokens: int) -> Table:
    """Return the facts of a survey as a table."""
    table = Table(show_header=False, box=None, title=found.source, title_justify="left", title_style="bold")
    for column, style in (("fact", "dim"), ("value", "")):
        table.add_column(column, style=style)
    read = ", ".join(f"{field} from '{name}'" if field != name else field for field, name in found.columns.items())
    table.add_row("format", f"{found.format} ({read})")
    if found.ignored:
        table.add_row("left out", ", ".join(found.ignored))
    table.add_row("rows", f"{found.rows:,}")
    if found.classes:
        table.add_row("classes", classes_in_words(found))
    else:
        table.add_row("turns", ", ".join(f"{count:,} {role}" for role, count in found.turns.items()) or "none")
    for name, count in (("with a system turn", found.with_system), ("with tools", found.with_tools)):
        if count:
            table.add_row(name, f"{count:,} rows")
    if found.lengths:
        learnt = f", of which {sum(found.learnt):,} are learnt ({sum(found.learnt) / sum(found.lengths):.0%})"
        table.add_row("tokens", f"{sum(found.lengths):,}{learnt if found.learnt else ''}")
        table.add_row(
            "length", f"median {found.quantile(0.5):,}, 95 % {found.quantile(0.95):,}, longest {max(found.lengths):,}"
        )
        table.add_row(f"longer than {max_tokens:,}", f"{found.longer_than(max_tokens):,} rows")
    return table


def classes_in_words(found: "Survey") -> str:
    """Return how many classes there are, the most frequent and the rarest ones with their rows."""
    ordered = found.classes.most_common()
    shown = ordered if len(ordered) <= 8 else [*ordered[:4], ("...", 0), *ordered[-3:]]
    words = ", ".join(f"{name} ({count:,})" if count else name for name, count in shown)
    return f"{len(ordered):,}: {words}"


def drawn(example: "Example") -> Text:
    """Return a row as coloured text: learnt words green, masked ones grey."""
    title = f"\n{example.where}{f' ({example.label})' if example.label else ''}\n"
    text = Text(title, style="bold")
    for piece in example.pieces:
        text.append(piece.text, style="green" if piece.is_learnt else "bright_black")
    return text
