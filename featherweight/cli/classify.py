"""`fw classify`: the classes of texts in a file or a pipe, one line out for each text in."""

import json
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from featherweight.cli.data import Columns, columns_of
from featherweight.cli.given import require_model
from featherweight.cli.screen import leave_cleanly
from featherweight.errors import ConfigError

if TYPE_CHECKING:
    from featherweight.text.classifier import Prediction, TextClassifier
    from featherweight.text.labelled import LabelledText


def classify(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="The folder of a trained classifier.", show_default=False, callback=require_model
        ),
    ],
    source: Annotated[
        str,
        typer.Argument(metavar="FILE|-", help="Texts: lines, JSON lines, a table; - reads a pipe.", show_default=False),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line, with all classes.")] = False,
    column: Columns = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Texts that are computed together.")] = 32,
    max_tokens: Annotated[
        int | None,
        typer.Option("--max-tokens", min=1, help="Tokens of a text to read; default: as trained.", show_default=False),
    ] = None,
) -> None:
    """Print the class of each text and its probability, in the order of the texts.

    A line is a text, or an object of JSON with the columns of the training data. Files that end in .csv, .jsonl,
    .parquet and the like are read as tables, others line by line. Labels in them are not looked at.

    [bold]Examples[/bold]

    fw classify runs/intents/model questions.txt

    echo "what is my balance" | fw classify runs/intents/model -

    fw classify runs/intents/model pairs.csv --column text=premise --column pair=claim --json
    """
    columns = columns_of(column)
    require_source(source)
    require_head(model)
    texts = texts_of(source, columns)
    ready = list(islice(texts, batch_size))  # what cannot be read is refused before a model is loaded
    from featherweight.text.classifier import TextClassifier

    with leave_cleanly("classify", None):
        classifier = TextClassifier(model, max_tokens=max_tokens)
        cut = 0
        while ready:
            for one, found in zip(ready, classifier(ready), strict=True):
                cut += found.is_cut
                print(_as_json(one, found, classifier) if as_json else f"{found.label}\t{found.probability:.4f}")
            sys.stdout.flush()
            ready = list(islice(texts, batch_size))
    if cut:
        Console(stderr=True).print(
            f"{cut:,} texts were longer than {classifier.max_tokens:,} tokens and classified by their beginning.",
            highlight=False,
        )


def require_source(source: str) -> None:
    """Refuse a file that is not there, before anything is imported."""
    if source != "-" and not Path(source).expanduser().is_file():
        raise ConfigError(f"fw classify: file={source} is no file; expected texts, or - for a pipe. Check the path.")


def require_head(model: str) -> None:
    """Refuse a folder whose model cannot classify, before anything is imported."""
    description = Path(model).expanduser() / "config.json"
    if not description.is_file():
        return
    try:
        named = json.loads(description.read_text(encoding="utf-8")).get("architectures") or []
    except (OSError, ValueError, AttributeError):
        return  # the loader says what is wrong with it
    if not any(str(name).endswith("ForSequenceClassification") for name in named):
        raise ConfigError(
            f"fw classify: model={model} is a {', '.join(map(str, named)) or 'model'} without a classification head; "
            "expected a model that was trained to classify. Train one: fw train with task: {name: classification, ...}."
        )


def texts_of(source: str, columns: dict[str, str]) -> Iterator["LabelledText"]:
    """Yield the texts of a file or of the standard input ("-")."""
    from featherweight.text.labelled import labelled_texts
    from featherweight.text.rows import ENDINGS, read_rows

    endings = [ending.lower() for ending in Path(source).suffixes[-2:]]
    is_table = source != "-" and any(ending in ENDINGS for ending in endings)
    rows = read_rows(source) if is_table else _lines(source)
    yield from labelled_texts(rows, columns=columns, needs_label=False)


def _lines(source: str) -> Iterator[tuple[str, Any]]:
    """Yield lines as rows: one of JSON as its object, any other as a text."""
    name = "standard input" if source == "-" else Path(source).name
    stream = sys.stdin if source == "-" else open(Path(source).expanduser(), encoding="utf-8-sig")
    try:
        for number, line in enumerate(stream, 1):
            yield f"{name}, line {number}", _row(line.rstrip("\r\n"))
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"fw classify: file={name} is no UTF-8 text at byte {error.start}; expected UTF-8. Convert it, for example "
            "with: iconv -f latin1 -t utf-8"
        ) from error
    finally:
        if source != "-":
            stream.close()


def _row(line: str) -> Any:
    if line.lstrip().startswith("{"):
        try:
            return json.loads(line)
        except json.JSONDecodeError:
            pass  # a text that begins with a brace
    return {"text": line}


def _as_json(one: "LabelledText", found: "Prediction", classifier: "TextClassifier") -> str:
    content = {
        "where": one.where,
        "label": found.label,
        "probability": found.probability,
        "probabilities": dict(zip(classifier.classes, found.probabilities, strict=True)),
        "is_cut": found.is_cut,
    }
    return json.dumps(content, ensure_ascii=False)
