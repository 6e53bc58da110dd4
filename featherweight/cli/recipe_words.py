"""Misspelt names and keys of task and optimizer, told before torch is imported.

Names of tasks stand in their registry; those of optimizers, and the keys of all, are read from the text of the modules
that declare them, because importing these takes seconds. A key is refused here if no optimizer, or no task on text, has
it; whether this one has it, and its value, is judged when the recipe is built, by the same rules as always.
"""

import ast
import sys
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import featherweight
from featherweight.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from featherweight.training.recipe import Recipe

_ROOT = Path(featherweight.__file__).parent
_TEXT_TASKS = ("text", "chat", "preference", "classification", "instructions")


def require_words(task: Mapping[str, Any], optimizer: Mapping[str, Any]) -> None:
    """Refuse a task or an optimizer that nobody knows, and keys that none of them has.

    Args:
        task: of a recipe, with its name.
        optimizer: of a recipe, with its name.
    Raises:
        ConfigError: for the first misspelt word, with the nearest one.
    """
    from featherweight.text.sources import ONLY_CHAT_STREAMS
    from featherweight.training.task import tasks

    tasks.require(task["name"])
    if task["name"] in _TEXT_TASKS:
        if "stream" in task and task["name"] != "chat":
            raise ConfigError(f"recipe task: stream={task['stream']} {ONLY_CHAT_STREAMS}")
        _require_keys(task, task_keys(), "recipe task")
    require_optimizers([optimizer["name"]])
    if optimizer["name"] in optimizer_names():
        _require_keys(optimizer, optimizer_keys(), "optimizer")


def require_axes(recipe: "Recipe", axes: Mapping[str, list[Any]]) -> None:
    """Refuse misspelt words of a recipe and of the axes of a grid over it.

    Args:
        recipe: with the changes that hold for all points.
        axes: keys with their values, such as {"optimizer.lr": [1e-4, 2e-4]}.
    Raises:
        ConfigError: as `require_words`.
    """
    for key, values in {"": [None], **axes}.items():
        part, _, option = key.partition(".")
        for value in values:
            given: dict[str, Any] = {"task": recipe.task, "optimizer": recipe.optimizer}
            if part in given and isinstance(value, str) and not option:
                given[part] = {"name": value}
            elif part in given and option:
                given[part] = {**given[part], option.partition(".")[0]: value}
            require_words(**given)


def is_choice(change: str) -> bool:
    """Say whether a change of a recipe names another optimizer, without options.

    Example:
        >>> is_choice("optimizer=galore"), is_choice("optimizer.rank=4"), is_choice("optimizer={name: adamw}")
        (True, False, False)
    """
    key, _, name = change.partition("=")
    return key == "optimizer" and name.isidentifier()


def require_optimizers(names: Iterable[str]) -> None:
    """Refuse names of optimizers that nobody knows.

    Raises:
        ConfigError: for the first one.
    """
    known = optimizer_names()
    for name in names:
        # Without the names in the text, or with the registry at hand, that is the one to judge.
        if known and name not in known and "featherweight.optim.build" not in sys.modules:
            from featherweight.registry import Registry

            registry: Registry[Any] = Registry("optimizer", "featherweight.optimizers")
            for one in known:
                registry.register(one, "featherweight.optim.build:optimizers")
            registry.require(name)


@lru_cache
def optimizer_names() -> tuple[str, ...]:
    """Return the names of the optimizers of the package, in the order of their registry."""
    for node in ast.walk(_parsed("optim/build.py")):
        if isinstance(node, ast.AnnAssign) and getattr(node.target, "id", "") == "_TABLE":
            rows = node.value.elts if isinstance(node.value, ast.Tuple) else []
            return tuple(str(row.elts[0].value) for row in rows if _begins_with_name(row))  # type: ignore[attr-defined]
    return ()


def optimizer_keys() -> set[str]:
    """Return every key that an optimizer of the package has in a recipe, and a few that are no keys of any."""
    return _fields("optim/build.py", "optim/options.py")


def task_keys() -> set[str]:
    """Return every key that a task on text has in a recipe, and a few that are no keys of any."""
    return _fields(*(f"text/{path.name}" for path in sorted((_ROOT / "text").glob("*.py"))))


@lru_cache
def _fields(*places: str) -> set[str]:
    """Return the names of all annotated fields of classes of options, and `name`."""
    found = {"name"}
    for place in places:
        for node in _parsed(place).body:
            if isinstance(node, ast.ClassDef) and node.bases:
                found |= {one.target.id for one in ast.walk(node) if _is_field(one)}  # type: ignore[attr-defined]
    return found


def _is_field(node: ast.AST) -> bool:
    return isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)


def _begins_with_name(row: ast.expr) -> bool:
    return isinstance(row, ast.Tuple) and isinstance(row.elts[0], ast.Constant)


def _parsed(place: str) -> ast.Module:
    return ast.parse((_ROOT / place).read_text(encoding="utf-8"))


def _require_keys(given: Mapping[str, Any], known: set[str], where: str) -> None:
    for key, value in given.items():
        if key not in known:
            raise ConfigError(
                f"{where}: {key}={value} is unknown; expected a known key. {did_you_mean(key, sorted(known))}"
            )
