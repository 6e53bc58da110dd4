"""Texts with a class: rows whose columns are a text, perhaps a second one, and a label.

Read as `featherweight.text.rows` gives them, each with the place where it stands; nothing is stripped or cut here.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from featherweight.errors import ConfigError, did_you_mean
from featherweight.text.formats import Format, Understanding, refuse_lost_text
from featherweight.text.rows import Row

FORMAT = Format("classification", ("text", "label"), ("pair",))
ALIASES: dict[str, tuple[str, ...]] = {
    "text": ("text", "sentence", "sentence1", "question1", "premise", "question", "utterance", "review", "content"),
    "pair": ("pair", "text_pair", "text2", "sentence2", "question2", "hypothesis"),
    "label": ("label", "labels", "class", "intent", "category", "target"),
}
"""For each field, the names of columns that hold it, in any case; the first one found counts."""


@dataclass(frozen=True)
class LabelledText:
    """One row."""

    text: str
    pair: str | None
    label: str
    """Name of its class; "" where none is asked for."""
    where: str
    """File and line."""

    @property
    def content(self) -> str:
        """What is classified, as one text that tells it from others."""
        return self.text if self.pair is None else f"{self.text}\0{self.pair}"


def labelled_texts(
    rows: Iterable[tuple[str, Row]],
    *,
    columns: Mapping[str, str] | None = None,
    ignore_columns: Sequence[str] = (),
    needs_label: bool = True,
) -> Iterator[LabelledText]:
    """Yield texts with their classes.

    Args:
        rows: pairs of the place and the row; see `read_rows`.
        columns: field (text, pair, label) to column, for other names than `ALIASES`.
        ignore_columns: columns with text that are left out on purpose.
        needs_label: False reads texts alone, and lets all other columns be.
    Raises:
        ConfigError: for a row without a text or label, or with text that would be lost; with file and line.
    Example:
        >>> [one.label for one in labelled_texts([("a.csv, line 2", {"Sentence": "Hello", "class": 3})])]
        ['3']
    """
    _check_fields(columns or {})
    for where, row in rows:
        if not isinstance(row, Mapping):
            raise ConfigError(
                f"{where}: the row is a {type(row).__name__}; expected an object with columns. Correct the row."
            )
        found = columns_of(row, where, columns or {}, needs_label)
        if needs_label:
            refuse_lost_text(row, Understanding(FORMAT, found), where, ignore_columns)
        yield LabelledText(
            text=_text(row[found["text"]], found["text"], where),
            pair=_text(row[found["pair"]], found["pair"], where) if "pair" in found else None,
            label=label_name(row[found["label"]], found["label"], where) if needs_label else "",
            where=where,
        )


def label_name(value: Any, column: str, where: str) -> str:
    """Return the name of a class: a word as it is, a whole number in digits.

    Raises:
        ConfigError: for anything else.
    Example:
        >>> label_name("spam", "label", ""), label_name(7, "label", ""), label_name(True, "label", "")
        ('spam', '7', 'true')
    """
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return str(int(value))
    if isinstance(value, str) and value.strip():
        return value
    raise ConfigError(
        f"{where}: {column}={value!r} is no class; expected a word or a whole number. Fill or remove the row."
    )


def class_names(labels: Iterable[str], known: Sequence[str] | None = None) -> tuple[str, ...]:
    """Return classes in order: that of a model trained on the same ones, else numbers by size, or words by name.

    Args:
        labels: of the rows.
        known: classes of the model.
    Example:
        >>> class_names(["10", "9", "9"]), class_names(["no", "yes"], ["yes", "no"])
        (('9', '10'), ('yes', 'no'))
    """
    names = set(labels)
    if known is not None and names == set(known):
        return tuple(known)
    are_numbers = all(name.removeprefix("-").isdecimal() for name in names)
    return tuple(sorted(names, key=lambda name: (int(name), name)) if are_numbers else sorted(names))


def is_labelled(row: Row, columns: Mapping[str, str] | None = None) -> bool:
    """Tell whether a row has a text and a class, as far as its columns say.

    Example:
        >>> is_labelled({"Sentence": "Hello", "class": 3}), is_labelled({"text": "Hello"})
        (True, False)
    """
    names = {str(name).lower() for name in row}
    return all(field in (columns or {}) or any(alias in names for alias in ALIASES[field]) for field in FORMAT.needed)


def _check_fields(columns: Mapping[str, str]) -> None:
    for field in columns:
        if field not in ALIASES:
            raise ConfigError(
                f"task classification: columns={field!r} is no field; expected {', '.join(ALIASES)}. "
                f"{did_you_mean(field, list(ALIASES))}"
            )


def columns_of(row: Row, where: str, columns: Mapping[str, str], needs_label: bool) -> dict[str, str]:
    """Return the column of each field that a row has."""
    taken = set(columns.values())
    by_name = {str(name).lower(): str(name) for name in row if name not in taken}
    found: dict[str, str] = {}
    for field, aliases in ALIASES.items():
        if field == "label" and not needs_label:
            continue
        column = columns.get(field) or next((by_name[alias] for alias in aliases if alias in by_name), None)
        if column is not None and column in row and (field != "pair" or row[column] is not None):
            found[field] = column
        elif field != "pair" or field in columns:
            wanted = columns.get(field, "/".join(aliases))
            raise ConfigError(
                f"{where}: columns={', '.join(map(str, row)) or 'none'} have no {field}; expected one called {wanted}. "
                f"Name it: columns: {{{field}: {next(iter(row), field)}}}."
            )
    return found


def _text(value: Any, column: str, where: str) -> str:
    if not isinstance(value, str):
        raise ConfigError(
            f"{where}: {column}={value!r} is a {type(value).__name__}; expected text. Correct or remove the row."
        )
    if not value.strip():
        raise ConfigError(f"{where}: {column}={value!r} is empty; expected text. Fill or remove the row.")
    return value
