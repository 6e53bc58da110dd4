"""Multiple-choice questions from files, in the forms in which such data are published.

A question has a stem, two texts or more to choose from, and one that is right. The right one may be named by its text,
its label, its letter or its number.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from featherweight.errors import ConfigError
from featherweight.text.instructions import Instruction, as_cloze
from featherweight.text.rows import Row, read_rows

STEMS = ("question", "query", "prompt", "goal", "ctx", "context", "sentence", "instruction", "input")
CHOICES = ("choices", "options", "endings", "candidates")
ANSWERS = ("answer", "answerKey", "label", "gold", "answer_index", "answer_idx", "correct")
_COLUMNS = (("A", "B", "C", "D", "E"), ("sol1", "sol2"), ("option1", "option2"))
_LETTERS = "ABCDEFGHIJ"


@dataclass(frozen=True)
class Question:
    """One question."""

    stem: str
    choices: tuple[str, ...]
    answer: int
    """Place of the right choice, from 0."""


def read_questions(source: str, *, limit: int | None = None) -> list[Question]:
    """Read questions from a file (JSON lines, JSON, CSV, TSV, parquet), a folder of such files, or hf:name.

    The stem stands under one of `STEMS`; the choices under one of `CHOICES`, as a list or as {text, label}, or in
    columns of their own (A, B, C, ...; sol1, sol2; option1, option2); the answer under one of `ANSWERS`. Rows of
    LLM-Adapters ("Answer format: answer1/answer2") are read, too. Numbers count from 0, unless some answer is the
    number of choices and none is 0.

    Args:
        source: the file.
        limit: read only the first so many.
    Raises:
        ConfigError: if a row is no such question, with its place; or there is none.
    """
    found: list[tuple[str, str, tuple[str, ...], tuple[str, ...], Any]] = []
    for place, row in read_rows(source):
        if limit is not None and len(found) == limit:
            break
        found.append((place, *_parts(row, place)))
    if not found:
        raise ConfigError(f"questions: source={source} holds none; expected one or more. Fill the file.")
    first = _first_number([(choices, labels, answer) for _, _, choices, labels, answer in found])
    return [
        Question(stem, choices, _place_of(answer, choices, labels, first, place))
        for place, stem, choices, labels, answer in found
    ]


def _parts(row: Row, place: str) -> tuple[str, tuple[str, ...], tuple[str, ...], Any]:
    """Return stem, choices, their labels, and the answer as it stands."""
    if row.get("instruction") and "Answer format:" in str(row["instruction"]):
        question = Instruction(str(row["instruction"]), str(row.get("output", "")), str(row.get("answer", "")))
        if (cloze := as_cloze(question)) is not None:
            return cloze.instruction, cloze.texts, (), cloze.output
    stem = next((str(row[key]) for key in STEMS if row.get(key) not in (None, "")), None)
    choices, labels = _choices(row)
    answer = next((row[key] for key in ANSWERS if row.get(key) not in (None, "")), None)
    lacking = [
        f"{what} (one of {', '.join(keys)})"
        for what, keys, one in (("question", STEMS, stem), ("choices", CHOICES, choices), ("answer", ANSWERS, answer))
        if not one and one != 0
    ]
    if lacking or stem is None or len(choices) < 2:
        what = " and no ".join(lacking) or "two choices"
        raise ConfigError(
            f"questions: {place} has the keys {sorted(row)} and no {what}; expected a multiple-choice question. Rename "
            "the keys, or leave the row out."
        )
    return stem, choices, labels, answer


def _choices(row: Row) -> tuple[tuple[str, ...], tuple[str, ...]]:
    found = next((row[key] for key in CHOICES if row.get(key) is not None), None)
    if isinstance(found, Mapping) and "text" in found:
        labels = found.get("label", [])
        return tuple(map(str, list(found["text"]))), tuple(map(str, list(labels)))
    if isinstance(found, Mapping):
        return tuple(map(str, found.values())), tuple(map(str, found))
    if isinstance(found, str):
        return (), ()
    if found is not None:
        return tuple(map(str, list(found))), ()
    for columns in _COLUMNS:
        present = [name for name in columns if row.get(name) is not None]
        if len(present) >= 2:
            letters = tuple(present) if columns[0] == "A" else ()
            return tuple(str(row[name]) for name in present), letters
    return (), ()


def _first_number(found: Sequence[tuple[tuple[str, ...], tuple[str, ...], Any]]) -> int:
    """Return whether the numbers of a file's answers count from 0 or from 1."""
    numbers = [
        (number, len(choices))
        for choices, labels, answer in found
        if (number := _number(answer)) is not None and str(answer) not in (*choices, *labels)
    ]
    counts_from_1 = any(number == count for number, count in numbers) and all(number >= 1 for number, _ in numbers)
    return int(counts_from_1)


def _place_of(answer: Any, choices: tuple[str, ...], labels: tuple[str, ...], first: int, place: str) -> int:
    text = str(answer).strip()
    for known in (labels, choices):
        if text in known:
            return known.index(text)
    if len(text) == 1 and text.upper() in _LETTERS[: len(choices)]:
        return _LETTERS.index(text.upper())
    number = _number(answer)
    if number is not None and 0 <= number - first < len(choices):
        return number - first
    raise ConfigError(
        f"questions: {place} has answer={text!r}, which names none of its {len(choices)} choices; expected a text, a "
        "label, a letter or a number of one. Correct the row."
    )


def _number(answer: Any) -> int | None:
    try:
        return int(str(answer))
    except ValueError:
        return None
