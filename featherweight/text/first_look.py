"""The rows of a recipe, looked at before torch is imported: what cannot be trained on is said within a second.

The task reads all rows later and judges more (tokens, template, split); nothing is refused here that it would take.
"""

import itertools
import time
from collections.abc import Mapping
from typing import Any

from featherweight.config.mapping_file import parse_value
from featherweight.errors import ConfigError
from featherweight.text.conversation import Conversation, Judgement, Preference, Record, of_kind
from featherweight.text.corpus import HUB_PREFIX
from featherweight.text.formats import records
from featherweight.text.labelled import labelled_texts
from featherweight.text.rows import read_rows
from featherweight.text.sources import Source, sources_of

LONGEST_S = 0.3
"""Of processor time for each source; the rows behind are left to the task."""
_KINDS: dict[str, tuple[type[Record], ...]] = {"chat": (Conversation,), "preference": (Preference, Judgement)}


def look_first(recipe: Mapping[str, Any], changes: list[str] | None = None) -> None:
    """Refuse a recipe whose first rows its task would refuse.

    Args:
        recipe: as its file has it; whether its keys and values are right is judged elsewhere.
        changes: "key=value" changes of it.
    Raises:
        ConfigError: with file and line.
    """
    task = _task(recipe, changes or [])
    name = task.get("name")
    if name not in (*_KINDS, "classification"):
        return
    columns, ignored = task.get("columns") or {}, task.get("ignore_columns") or []
    for data in (task.get("data"), task.get("held_out")):
        try:
            named = [Source.parse(one) if isinstance(one, Mapping) else one for one in _listed(data)]
            sources = sources_of(named, columns, ignored, where=f"task {name}") if named else []
        except (ConfigError, TypeError, ValueError):
            return  # the recipe's own check says what is wrong with these keys, and with others
        for source, reading in sources:
            if not source.path.startswith(HUB_PREFIX):
                _read(name, source.path, reading)


def _task(recipe: Mapping[str, Any], changes: list[str]) -> dict[str, Any]:
    """Return the task of a recipe with the changes of its own keys."""
    found = recipe.get("task")
    task = dict(found) if isinstance(found, Mapping) else {"name": found}
    for change in changes:
        key, _, text = change.partition("=")
        if key == "task" or key.count(".") > 1:
            return {}  # too much is new to say anything early
        if key.startswith("task."):
            try:
                task[key.removeprefix("task.")] = parse_value(text)
            except ValueError:
                return {}
    return task


def _listed(data: Any) -> list[Any]:
    if isinstance(data, str):
        return [data]
    return data if isinstance(data, list) else []


def _read(name: str, path: str, reading: dict[str, Any]) -> None:
    end = time.process_time() + LONGEST_S
    rows = itertools.takewhile(lambda _: time.process_time() < end, read_rows(path))
    found: Any = labelled_texts(rows, **reading)
    if name in _KINDS:
        found = of_kind(records(rows, **reading), path, _KINDS[name], f"task {name}")
    for _ in found:
        pass
