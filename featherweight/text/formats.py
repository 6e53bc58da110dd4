"""From rows with columns to conversations: the formats in which people bring chat data.

| format | columns |
|---|---|
| messages | `messages` (or `conversation`, `dialog`): a list of {role, content}; `tools` |
| sharegpt | `conversations`: a list of {from, value}; `system`, `tools` |
| alpaca | `instruction`, `input`, `output` (or `response`, `answer`, `completion`); `system`, `history` |
| prompt | `prompt`, `completion` (or `response`, `output`, `answer`), texts or lists of messages; `system` |
| question | `question` (or `query`), `answer` (or `response`), `context`; `system` |
| preference | `chosen`, `rejected`, texts or lists of messages; `prompt` |
| judged | `prompt`, `completion`, `label` (true or false) |
| text | `text` |

Names count in any case; `columns` maps the names of a format to those of the file ({"prompt": "Frage"}). A column that
carries text and belongs to nothing is refused, not dropped. Nothing is stripped, cut or turned into text.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from featherweight.errors import ConfigError, did_you_mean
from featherweight.text.conversation import (
    Conversation,
    Document,
    Judgement,
    Preference,
    Record,
    Role,
    Turn,
    check,
    shared_beginning,
)

Row = Mapping[str, Any]

ROLE_NAMES: dict[str, Role] = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "model", "bot", "chatgpt", "function_call"), "assistant"),
    **dict.fromkeys(("tool", "function", "observation", "ipython", "function_response"), "tool"),
}
"""What the sides of a conversation are called in files."""
IDENTIFIERS = ("id", "idx", "index", "", "unnamed: 0", "uuid", "guid", "hash", "conversation_id", "prompt_id")
"""Columns that name a row and carry none of its text, as long as they hold a single word."""
_ALIASES: dict[str, tuple[str, ...]] = {
    "messages": ("messages", "conversations", "conversation", "dialog", "dialogue"),
    "instruction": ("instruction",),
    "input": ("input",),
    "prompt": ("prompt",),
    "question": ("question", "query"),
    "context": ("context",),
    "response": ("output", "response", "completion", "answer"),
    "system": ("system", "system_prompt"),
    "history": ("history",),
    "tools": ("tools", "functions"),
    "chosen": ("chosen",),
    "rejected": ("rejected",),
    "label": ("label",),
    "text": ("text",),
}
"""For each field of a format, the names of columns that hold it; the first one found counts."""


@dataclass(frozen=True)
class Format:
    """One way to write a row: fields that it must have, and fields that it may have."""

    name: str
    needed: tuple[str, ...]
    optional: tuple[str, ...] = ()

    @property
    def fields(self) -> tuple[str, ...]:
        """All fields."""
        return (*self.needed, *self.optional)


FORMATS = (
    Format("preference", ("chosen", "rejected"), ("prompt", "system", "tools")),
    Format("messages", ("messages",), ("system", "tools")),
    Format("judged", ("prompt", "response", "label"), ("system", "tools")),
    Format("alpaca", ("instruction", "response"), ("input", "context", "system", "history", "tools")),
    Format("prompt", ("prompt", "response"), ("context", "system", "history", "tools")),
    Format("question", ("question", "response"), ("context", "system", "history")),
    Format("text", ("text",)),
)
"""In the order in which they are tried: the first whose needed fields a row has."""


@dataclass(frozen=True)
class Understanding:
    """How the rows of a source are read: their format, and the column of each of its fields."""

    format: Format
    columns: Mapping[str, str]
    """Field to column, in the file's own spelling."""
    ignored: tuple[str, ...] = ()
    """Columns that are left out: asked for, or without text."""


def understand(
    row: Row, where: str, *, columns: Mapping[str, str] | None = None, ignore_columns: Sequence[str] = ()
) -> Understanding:
    """Find the format of a row.

    Args:
        row: column to value.
        where: file and line.
        columns: field to column, for names that are not known here.
        ignore_columns: columns with text that are to be left out.
    Raises:
        ConfigError: if no format has these columns, a column carries text and belongs to nothing, or `columns` names
            what is not there.
    """
    columns = columns or {}
    for field in columns:
        if field not in _ALIASES:
            raise ConfigError(
                f"{where}: columns={field!r} is no field of a format; expected one of {', '.join(_ALIASES)}. "
                f"{did_you_mean(field, list(_ALIASES))}"
            )
    for column in (*columns.values(), *ignore_columns):
        if column not in row:
            raise ConfigError(
                f"{where}: column={column!r} is not there; expected one of {', '.join(map(str, row))}. "
                f"{did_you_mean(column, [str(name) for name in row])}"
            )
    present = {name: value for name, value in row.items() if name not in ignore_columns and not _is_missing(value)}
    found = fields_of(present, columns)
    for one in FORMATS:
        if all(field in found for field in one.needed):
            used = {field: column for field, column in found.items() if field in one.fields}
            left = tuple(n for n, value in row.items() if n not in used.values() and not _is_missing(value))
            understood = Understanding(one, used, left)
            refuse_lost_text(row, understood, where, ignore_columns)
            return understood
    empty = {field: column for field, column in fields_of(row, columns).items() if field not in found}
    for one in FORMATS:
        lacking = [empty[field] for field in one.needed if field in empty]
        if lacking and all(field in found or field in empty for field in one.needed):
            raise ConfigError(
                f"{where}: column={lacking[0]!r} is empty; expected a value, as rows of the format '{one.name}' have. "
                "Fill or remove the row."
            )
    raise ConfigError(
        f"{where}: columns={', '.join(map(str, row)) or 'none'} are of no known format; expected one of "
        f"{'; '.join(f'{one.name} ({_spelled(one)})' for one in FORMATS)}. Name them: columns: {{prompt: "
        f"{next(iter(row), 'question')}, response: ...}}."
    )


def fields_of(row: Row, columns: Mapping[str, str]) -> dict[str, str]:
    """Return the column of each field that a row has."""
    taken = set(columns.values())
    by_name = {str(name).lower(): str(name) for name in row if name not in taken}
    found = {}
    for field, aliases in _ALIASES.items():
        if field in columns:
            found[field] = columns[field]
        elif name := next((by_name[alias] for alias in aliases if alias in by_name), None):
            found[field] = name
    return found


def _spelled(one: Format) -> str:
    return " + ".join("/".join(_ALIASES[field]) for field in one.needed)


def refuse_lost_text(row: Row, understood: Understanding, where: str, ignore_columns: Sequence[str] = ()) -> None:
    """Refuse a row with text in a column that its format does not read.

    Raises:
        ConfigError: with the column and the ways out.
    """
    used = {*understood.columns.values(), *ignore_columns}
    for name, value in row.items():
        if name in used or not _carries_text(name, value):
            continue
        raise ConfigError(
            f"{where}: column={name!r} carries text ({_short(value)}) and belongs to no field of the format "
            f"'{understood.format.name}'; expected {', '.join(understood.format.fields)}. Map it (columns: {{context: "
            f"{name}}}), or leave it out by ignore_columns: [{name}]."
        )


def _carries_text(name: str, value: Any) -> bool:
    if isinstance(value, str):
        is_name = str(name).lower() in IDENTIFIERS and len(value.split()) < 2
        return bool(value.strip()) and not is_name
    if isinstance(value, Mapping):
        return any(_carries_text("", inner) for inner in value.values())
    return isinstance(value, list | tuple) and any(_carries_text("", inner) for inner in value)


def records(
    rows: Iterable[tuple[str, Row]],
    *,
    columns: Mapping[str, str] | None = None,
    ignore_columns: Sequence[str] = (),
) -> Iterator[Record]:
    """Yield what rows say; all rows of a source have the format of its first.

    Args:
        rows: pairs of the place (file and line) and the row.
        columns: see `understand`.
        ignore_columns: see `understand`.
    Raises:
        ConfigError: for a row that is not understood, with its place.
    """
    understood: Understanding | None = None
    for where, row in rows:
        if not isinstance(row, Mapping):
            raise ConfigError(
                f"{where}: the row is a {type(row).__name__}; expected an object with columns. Correct the row."
            )
        if understood is None:
            understood = understand(row, where, columns=columns, ignore_columns=ignore_columns)
        elif missing := [f for f in understood.format.needed if _is_missing(row.get(understood.columns[f]))]:
            names = ", ".join(repr(understood.columns[field]) for field in missing)
            raise ConfigError(
                f"{where}: columns={', '.join(map(str, row))} lack {names}, which the rows before have (format "
                f"'{understood.format.name}'); expected rows of one format in a file. Fill or remove the row, or keep "
                "each format in a file of its own."
            )
        else:
            understood = _with_optional(understood, row)
            refuse_lost_text(row, understood, where, ignore_columns)
        yield record(row, understood, where)


def _with_optional(understood: Understanding, row: Row) -> Understanding:
    """Return how a row is read that has optional fields which the rows before did not have."""
    found = fields_of({name: value for name, value in row.items() if not _is_missing(value)}, {})
    more = {f: c for f, c in found.items() if f in understood.format.optional and f not in understood.columns}
    if not more:
        return understood
    return Understanding(understood.format, {**understood.columns, **more}, understood.ignored)


def record(row: Row, understood: Understanding, where: str) -> Record:
    """Return what one row says.

    Raises:
        ConfigError: if a value has another type than its field, or the turns stand in no order.
    """
    value = {field: row.get(column) for field, column in understood.columns.items()}
    kind = understood.format.name
    if kind == "text":
        return Document(_text(value["text"], "text", where), where)
    tools = _tools(value.get("tools"), where)
    if kind == "preference":
        return _preference(value, tools, where)
    if kind == "messages":
        turns = _system(value, where) + _turns(value["messages"], understood.columns["messages"], where)
    elif kind in ("judged", "prompt") and isinstance(value["prompt"], list | tuple):
        answer = _answer(value["response"], understood.columns["response"], where)
        turns = _system(value, where) + _turns(value["prompt"], understood.columns["prompt"], where) + answer
    else:
        turns = (
            *_system(value, where),
            *_history(value.get("history"), where),
            Turn("user", _question(value, where)),
            *_answer(value["response"], understood.columns["response"], where),
        )
    conversation = Conversation(tuple(turns), tools, where)
    check(conversation)
    return Judgement(conversation, _truth(value["label"], where)) if kind == "judged" else conversation


def _question(value: Mapping[str, Any], where: str) -> str:
    """Return the text of the user: context, then what is asked, then its input, apart by blank lines."""
    parts = [
        _text(value[field], field, where)
        for field in ("context", "instruction", "prompt", "question", "input")
        if not _is_missing(value.get(field))
    ]
    return "\n\n".join(parts)


def _preference(value: Mapping[str, Any], tools: tuple[Mapping[str, Any], ...], where: str) -> Preference:
    chosen, rejected = (_answer(value[side], side, where) for side in ("chosen", "rejected"))
    prompt = value.get("prompt")
    if _is_missing(prompt):
        shared = shared_beginning(chosen, rejected)
        asked, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
    elif isinstance(prompt, list | tuple):
        asked = _turns(prompt, "prompt", where)
    else:
        asked = (Turn("user", _text(prompt, "prompt", where)),)
    # Some sets repeat the prompt at the beginning of both answers.
    if asked and chosen[: len(asked)] == asked == rejected[: len(asked)]:
        chosen, rejected = chosen[len(asked) :], rejected[len(asked) :]
    preference = Preference(_system(value, where) + asked, chosen, rejected, tools, where)
    if chosen == rejected:
        raise ConfigError(
            f"{where}: chosen and rejected are equal ({_short(value['chosen'])}); expected two different answers. "
            "Remove the row."
        )
    if not preference.prompt:
        raise ConfigError(
            f"{where}: chosen and rejected begin differently and no prompt stands beside them; expected a prompt, or "
            "conversations that begin alike. Add the column prompt."
        )
    for conversation in preference.conversations():
        check(conversation)
    return preference


def _system(value: Mapping[str, Any], where: str) -> tuple[Turn, ...]:
    system = value.get("system")
    return () if _is_missing(system) else (Turn("system", _text(system, "system", where)),)


def _history(history: Any, where: str) -> tuple[Turn, ...]:
    if _is_missing(history):
        return ()
    history = _from_json(history)
    if not isinstance(history, list | tuple) or not all(isinstance(p, list | tuple) and len(p) == 2 for p in history):
        raise ConfigError(
            f"{where}: history={_short(history)} is no list of pairs; expected [[question, answer], ...]. Correct it."
        )
    return tuple(
        turn
        for asked, answered in history
        for turn in (
            Turn("user", _text(asked, "history", where)),
            Turn("assistant", _text(answered, "history", where)),
        )
    )


def _answer(answer: Any, column: str, where: str) -> tuple[Turn, ...]:
    if isinstance(answer, list | tuple) and answer and isinstance(answer[0], Mapping):
        return _turns(answer, column, where)
    return (Turn("assistant", _text(answer, column, where)),)


def _turns(messages: Any, column: str, where: str) -> tuple[Turn, ...]:
    messages = _from_json(messages)
    if not isinstance(messages, list | tuple) or not all(isinstance(message, Mapping) for message in messages):
        raise ConfigError(
            f"{where}: {column}={_short(messages)} is no list of messages; expected [{{role: user, content: ...}}, "
            "...] or [{from: human, value: ...}, ...]. Correct the row."
        )
    if not messages:
        raise ConfigError(f"{where}: {column}=[] holds no turn; expected two or more. Remove the row.")
    return tuple(_turn(message, f"{where}, {column}[{number}]") for number, message in enumerate(messages))


def _turn(message: Row, where: str) -> Turn:
    spoken = message.get("role", message.get("from"))
    role = ROLE_NAMES.get(str(spoken).lower())
    if role is None:
        raise ConfigError(
            f"{where}: role={spoken!r} is unknown; expected one of {', '.join(ROLE_NAMES)}. "
            f"{did_you_mean(str(spoken), list(ROLE_NAMES))}"
        )
    content = message.get("content", message.get("value"))
    extra = {
        name: kept
        for name, kept in message.items()
        if name not in ("role", "from", "content", "value") and not _is_missing(kept)
    }
    if str(spoken).lower() == "function_call":
        call = _from_json(content)
        if not isinstance(call, Mapping) or "name" not in call:
            raise ConfigError(
                f"{where}: value={_short(content)} of a function_call is no JSON with a name; expected "
                '{"name": ..., "arguments": {...}}. Correct the row.'
            )
        return Turn(role, "", (("tool_calls", [{"type": "function", "function": dict(call)}]),))
    if content is None and extra.get("tool_calls"):
        content = ""
    return Turn(role, _text(content, "content", where), tuple(extra.items()))


def _text(value: Any, column: str, where: str) -> str:
    """Return a text as it stands; parts of type text are joined, all else is refused."""
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple) and value and all(isinstance(p, Mapping) and "type" in p for p in value):
        other = next(
            (part["type"] for part in value if part["type"] != "text" or not isinstance(part.get("text"), str)), None
        )
        if other is None:
            return "".join(part["text"] for part in value)
        raise ConfigError(
            f"{where}: {column} holds a part of type={other!r}; expected texts alone, as these models read nothing "
            "else. Leave such rows out."
        )
    raise ConfigError(
        f"{where}: {column}={_short(value)} is {'missing' if value is None else 'a ' + type(value).__name__}; expected "
        "a text. Correct the row, or leave it out."
    )


def _tools(tools: Any, where: str) -> tuple[Mapping[str, Any], ...]:
    if _is_missing(tools):
        return ()
    tools = _from_json(tools)
    if not isinstance(tools, list | tuple) or not all(isinstance(tool, Mapping) for tool in tools):
        raise ConfigError(
            f"{where}: tools={_short(tools)} is no list of functions; expected JSON schemas of functions, as "
            "transformers takes them. Correct the row."
        )
    return tuple(cast(Sequence[Mapping[str, Any]], tools))


def _truth(label: Any, where: str) -> bool:
    if isinstance(label, str) and label.strip().lower() in ("true", "false", "1", "0"):
        return label.strip().lower() in ("true", "1")  # tables of text know nothing else
    if isinstance(label, bool) or label in (0, 1):
        return bool(label)
    raise ConfigError(f"{where}: label={label!r} is neither true nor false; expected one of them. Correct the row.")


def _from_json(value: Any) -> Any:
    """Return what a text of JSON holds (files without nested columns keep lists so); other values as they are."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except json.JSONDecodeError:
            return value
    return value


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, str | list | tuple | Mapping) and len(value) == 0)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
