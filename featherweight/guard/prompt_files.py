"""Prompts from files: JSON lines, JSON, CSV or plain lines, under the names of columns that data sets use."""

import csv
import json
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from featherweight.errors import ConfigError

PROMPT_COLUMNS = ("prompt", "instruction", "goal", "text", "question", "behavior", "forbidden_prompt", "messages")
"""Columns that hold a prompt, in any case; the first one found counts."""
GROUP_COLUMNS = ("group", "category", "type", "semanticcategory", "intent", "source")
"""Columns whose value two splits never share, as `grouped_by` asks for it."""
_OTHER_COLUMNS = (
    "id,label,target,note,focus,behaviorid,functionalcategory,tags,contextstring,output,response,source_id,dataset,"
    "generator,datasplit,original index,index,domain,input"
).split(",")


@dataclass(frozen=True)
class Prompt:
    """One request."""

    text: str
    """Of its last turn."""
    messages: tuple[Mapping[str, Any], ...]
    """The whole conversation."""
    category: str
    """What the file says of its kind; "" if nothing."""
    where: str
    """File and place."""

    @property
    def key(self) -> str:
        """The text without what does not tell two requests apart: case, marks and blanks."""
        joined = "\n".join(str(one.get("content") or "") for one in self.messages)
        plain = unicodedata.normalize("NFKC", joined).casefold()
        return " ".join(re.findall(r"\w+", plain)) or joined.strip()


@dataclass(frozen=True)
class PromptSet:
    """Prompts of one class."""

    name: str
    prompts: list[Prompt]
    dropped: int = field(default=0)
    """Rows that said the same as an earlier one."""

    def __len__(self) -> int:
        return len(self.prompts)


def read_prompts(source: str | Path | Sequence[Any], name: str) -> PromptSet:
    """Return the prompts of a file or a list, each once.

    Args:
        source: .jsonl, .json (a list of texts or objects), .csv, .tsv or .txt (a line is a prompt); or texts, lists of
            messages or objects.
        name: of the class, for messages.

    Raises:
        ConfigError: if the file cannot be read, has no column of a prompt, columns that nobody knows, or is empty.

    Example:
        >>> [one.text for one in read_prompts(["Hello", "hello!", "Bye"], "benign").prompts]
        ['Hello', 'Bye']
    """
    if isinstance(source, str | Path):
        path = Path(source).expanduser()
        rows: list[tuple[str, Any]] = list(_rows(path))
    else:
        rows = [(f"{name}, item {index + 1}", row) for index, row in enumerate(source)]
    found: dict[str, Prompt] = {}
    for where, row in rows:
        prompt = _prompt(row, where)
        found.setdefault(prompt.key, prompt)
    if not found:
        raise ConfigError(f"guard: {name}={source} holds no prompt; expected some. Check the file.")
    return PromptSet(name, list(found.values()), len(rows) - len(found))


def read_prompt_rows(source: Path | Sequence[str]) -> list[tuple[str, Any]]:
    """Return a name and the conversation of each prompt, repeated ones included.

    Args:
        source: a file, or lines, each a prompt or an object of JSON.

    Raises:
        ConfigError: as `read_prompts`.
    """
    if isinstance(source, Path):
        rows = list(_rows(source))
    else:
        rows = [(f"line {index}", _from_line(line, index)) for index, line in enumerate(source, 1)]
    found = []
    for index, (where, row) in enumerate(rows, 1):
        name = str(row["id"]) if isinstance(row, Mapping) and row.get("id") is not None else str(index)
        found.append((name, list(_prompt(row, where).messages)))
    return found


def _from_line(line: str, index: int) -> Any:
    if not line.lstrip().startswith(("{", '"', "[")):
        return line
    try:
        return json.loads(line)
    except ValueError as error:
        raise ConfigError(
            f"guard: line {index} is no JSON ({error}); expected a text or an object. Correct it."
        ) from None


def refuse_shared(sets: Iterable[PromptSet]) -> None:
    """Refuse a prompt that stands in two classes.

    Raises:
        ConfigError: naming the first one's places, not its words.
    """
    seen: dict[str, tuple[str, str]] = {}
    for one in sets:
        for prompt in one.prompts:
            other = seen.setdefault(prompt.key, (one.name, prompt.where))
            if other[0] != one.name:
                raise ConfigError(
                    f"guard calibrate: {prompt.where} ({one.name}) asks the same as {other[1]} ({other[0]}); expected "
                    "each prompt in one class. Remove one of them."
                )


def _rows(path: Path) -> Iterable[tuple[str, Any]]:
    suffix = path.suffix.lower()
    if suffix not in (".jsonl", ".json", ".csv", ".tsv", ".txt"):
        raise ConfigError(
            f"guard: file={path} is of no kind that is read; expected .jsonl, .json, .csv, .tsv or .txt. Rename it."
        )
    try:
        text = path.read_text(encoding="utf-8-sig")
        if suffix == ".json":
            loaded = json.loads(text)
            if not isinstance(loaded, list):
                raise ConfigError(
                    f"guard: file={path} holds a JSON {type(loaded).__name__}; expected a list of prompts. Correct it."
                )
            return [(f"{path.name}, item {index + 1}", row) for index, row in enumerate(loaded)]
        if suffix == ".jsonl":
            lines = enumerate(text.splitlines(), 1)
            return [(f"{path.name}, line {index}", json.loads(line)) for index, line in lines if line.strip()]
        if suffix in (".csv", ".tsv"):
            reader = csv.DictReader(text.splitlines(keepends=True), delimiter="\t" if suffix == ".tsv" else ",")
            return [(f"{path.name}, line {reader.line_num}", row) for row in reader]
    except (OSError, ValueError, csv.Error) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"guard: file={path} cannot be read ({error}); expected prompts. Check the file.") from error
    return [(f"{path.name}, line {index}", line) for index, line in enumerate(text.splitlines(), 1) if line.strip()]


def _prompt(row: Any, where: str) -> Prompt:
    if isinstance(row, str):
        return _made([{"role": "user", "content": row}], "", where)
    if isinstance(row, Sequence):
        return _made(row, "", where)
    if not isinstance(row, Mapping):
        raise ConfigError(f"{where}: the row is a {type(row).__name__}; expected a text or an object. Correct the row.")
    by_name = {str(key).strip().lower(): value for key, value in row.items() if key not in (None, "")}
    column = next((name for name in PROMPT_COLUMNS if name in by_name), None)
    unknown = [name for name in by_name if name not in (*PROMPT_COLUMNS, *GROUP_COLUMNS, *_OTHER_COLUMNS)]
    if column is None or unknown:
        raise ConfigError(
            f"{where}: columns={', '.join(unknown or by_name) or 'none'} are unknown; expected a prompt in one of "
            f"{', '.join(PROMPT_COLUMNS)}, and at most id, label, category and source beside it. Rename or remove them."
        )
    group = next((str(by_name[name]) for name in GROUP_COLUMNS if by_name.get(name)), "")
    value = by_name[column]
    if isinstance(value, str):
        extra = by_name.get("contextstring") or (by_name.get("input") if column == "instruction" else None)
        text = f"{extra}\n\n{value}" if column == "behavior" and extra else f"{value}\n\n{extra}" if extra else value
        return _made([{"role": "user", "content": text}], group, where)
    if column == "messages" and isinstance(value, Sequence):
        return _made(value, group, where)
    raise ConfigError(f"{where}: {column}={value!r} is no prompt; expected a text. Fill or remove the row.")


def _made(messages: Sequence[Any], category: str, where: str) -> Prompt:
    if not messages or not all(isinstance(one, Mapping) and "role" in one for one in messages):
        raise ConfigError(f"{where}: the turns have no role; expected objects with role and content. Correct the row.")
    text = str(messages[-1].get("content") or "")
    if not text.strip():
        raise ConfigError(f"{where}: the prompt is empty; expected some text. Fill or remove the row.")
    return Prompt(text, tuple(messages), category, where)
