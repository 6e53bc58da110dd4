"""Whether lm-evaluation-harness and its tasks are there, asked before torch is imported."""

import importlib.util
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from featherweight.errors import ConfigError, MissingExtraError, nearest

_NAMED = re.compile(rb"^[\"']?(?:task|group|tag)[\"']?:[ \t]*[\"']?([\w.:+-]+)", re.MULTILINE)
"""A line of a file of tasks that gives one its name."""


def require_harness(tasks: Sequence[str], include: Path | None = None) -> None:
    """Refuse tasks of the harness where it is not installed, and names that stand in none of its files.

    The harness itself takes ten seconds to list what it has, so its files are searched as text.

    Args:
        tasks: names, or the option that asks for them.
        include: a folder with files of further tasks.
    Raises:
        MissingExtraError: says what goes without it.
        ConfigError: for the first name that is nowhere.
    Cost: half a second of reading.
    """
    found = importlib.util.find_spec("lm_eval")
    if found is None or found.origin is None:
        raise MissingExtraError(
            f"evaluate: tasks={','.join(tasks)} need lm-evaluation-harness, which is not installed; expected it. Run: "
            "pip install 'featherweight[evaluate]'. Without it: --questions FILE and --text FILE measure on local data."
        )
    wanted = {task for task in tasks if not task.startswith("--")}
    known: set[str] = set()
    for text in _texts(Path(found.origin).parent / "tasks") if wanted else ():
        known |= {name.decode() for name in _NAMED.findall(text)}
        wanted -= {name for name in wanted if name.encode() in text}
    own: set[str] = set()
    for text in _texts(include) if include is not None else ():
        own |= {name.decode() for name in _NAMED.findall(text)}
        wanted -= {name for name in wanted if name.encode() in text}
    if wanted:
        raise unknown_task(min(wanted), known, own, include)


def unknown_task(task: str, known: set[str], own: set[str], include: Path | None) -> ConfigError:
    """Return the sentence for a task that nobody has.

    Args:
        task: its name.
        known: names of the harness.
        own: names of the files in `include`.
        include: a folder.
    """
    # Spellings are compared with names that begin alike: there are fifteen thousand.
    near = nearest(task, [name for name in known | own if name[:1] == task[:1] or name in own], limit=1)
    hint = f"Did you mean '{near[0]}'? " if near else ""
    return ConfigError(
        f"evaluate: task={task} is unknown; expected one of the harness"
        f"{f', or {chr(44).join(sorted(own))} of {include}' if own else ''}. {hint}"
        "fw evaluate --list-tasks shows all of them."
    )


def _texts(folder: Path) -> Iterator[bytes]:
    """Yield the files that describe tasks."""
    for place, _, names in os.walk(folder):
        for name in names:
            if name.endswith((".yaml", ".yml", ".py")):
                yield Path(place, name).read_bytes()
