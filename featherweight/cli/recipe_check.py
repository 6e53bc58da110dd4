"""What can be said of a recipe before torch is imported: keys, values, whether model and data are there and enough."""

from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featherweight.cli.given import has_no_template, longest_row, require_model
from featherweight.errors import ConfigError
from featherweight.text.options import LanguageConfig

if TYPE_CHECKING:
    from featherweight.training.recipe import Recipe

_ROWS = ("chat", "preference", "classification", "instructions")
"""Tasks whose key `data` names rows."""
LARGE_BYTES = 2**24
"""Texts up to this size are read before torch is imported."""
_LINES = (".jsonl", ".ndjson", ".csv", ".tsv")
"""Files of at most one row a line."""


def check_recipe(path: Path, changes: Iterable[str] | None) -> "Recipe":
    """Judge a recipe and what it names, as far as half a second reaches.

    Args:
        path: of the recipe.
        changes: "key=value" assignments.
    Returns:
        The recipe.
    Raises:
        ConfigError: if a key or a value is wrong, a name or a model or data are not there, rows are longer than the
            model reads, a template is missing, or no micro-batch can be filled.
    """
    from featherweight.training.recipe import load_recipe

    return check_names(load_recipe(path, changes or []))


def check_names(recipe: "Recipe") -> "Recipe":
    """Judge a recipe that is read already, and return it; see `check_recipe`."""
    recipe.check_options()
    task = recipe.task
    if isinstance(config := recipe.task_config(), LanguageConfig):
        config.check_weights([one.title for one in recipe.method_options() if one.needs_pretrained])
    if isinstance(model := task.get("model"), str):
        require_model(model)
        _require_length(task, model)
        _require_template(task, model)
    if task["name"] in _ROWS:
        _require_rows(task, recipe.micro_batch_size)
    elif task["name"] == "text":
        _require_text(task, recipe.micro_batch_size)
    else:
        _require_data_set(recipe)
    return recipe


def _require_data_set(recipe: "Recipe") -> None:
    """Refuse data that are not there, or problems that cannot be generated, of tasks on fields, frames or episodes."""
    from featherweight.bev.options import BEVConfig
    from featherweight.pde.options import PdeConfig
    from featherweight.robot.learning.options import DemonstratedConfig

    config = recipe.task_config()
    if isinstance(config, PdeConfig):
        from featherweight.pde.data_files import find_files
        from featherweight.pde.problem_options import PROBLEM_OPTIONS, problem_options

        problem_options(config) if config.data in PROBLEM_OPTIONS else find_files(config)
    elif isinstance(config, BEVConfig):
        from featherweight.bev.data.sources import kind_of

        kind_of(config.data)
    elif isinstance(config, DemonstratedConfig):
        from featherweight.robot.recording.layout import read_info

        read_info(config.data)


def _require_length(task: Mapping[str, Any], model: str) -> None:
    """Refuse rows that are longer than the model reads; a classification cuts them."""
    key = "seq_len" if task["name"] == "text" else "max_tokens"
    if task["name"] not in (*_ROWS, "text") or task["name"] == "classification":
        return
    length, longest = task.get(key), longest_row(model)
    stretched = task.get("max_positions")
    if longest is not None and isinstance(stretched, int):
        longest = max(longest, stretched)
    if isinstance(length, int) and longest is not None and length > longest:
        raise ConfigError(
            f"task {task['name']}: {key}={length} is longer than max_position_embeddings={longest} of model "
            f"'{model}'; expected 2 <= {key} <= {longest}. Lower {key}, set max_positions={length} to stretch its "
            "positions, or choose another model."
        )


def _require_template(task: Mapping[str, Any], model: str) -> None:
    source = task.get("tokenizer") or model
    if task["name"] in ("chat", "preference") and task.get("template") is None and has_no_template(str(source)):
        raise ConfigError(
            f"task {task['name']}: the tokenizer of {source} has no chat template (a base model); expected one. Choose "
            "one: template: chatml or alpaca."
        )


def _require_rows(task: Mapping[str, Any], micro_batch_size: int) -> None:
    from featherweight.text.rows import read_rows

    for key in ("data", "held_out"):
        source = task.get(key)
        if isinstance(source, str) and _is_missing(source):
            next(iter(read_rows(source)))
    file = Path(str(task.get("data"))).expanduser()
    if file.suffix in _LINES and file.is_file():
        with open(file, "rb") as lines:
            count = sum(1 for _ in islice(lines, micro_batch_size))
        _require_enough(micro_batch_size, count, f"{task['data']} holds {count} lines")
    _require_enough(micro_batch_size, task.get("max_train_rows"), f"max_train_rows={task.get('max_train_rows')}")


def _require_text(task: Mapping[str, Any], micro_batch_size: int) -> None:
    from featherweight.text.corpus import CORPORA

    for key in ("corpus", "held_out"):
        source = task.get(key)
        if isinstance(source, str) and source not in CORPORA and not source.startswith("hf:"):
            _require_corpus(Path(source).expanduser(), source)
    file = Path(str(task.get("corpus"))).expanduser()
    length = task.get("seq_len")
    if file.suffix == ".txt" and file.is_file() and isinstance(length, int) and length > 0:
        # A token has a byte or more, and a document, which has one at least, ends in a token of its own.
        rows = 2 * file.stat().st_size // length
        _require_enough(micro_batch_size, rows, f"{task['corpus']} has {file.stat().st_size:,} bytes")


def _require_corpus(path: Path, source: str) -> None:
    """Refuse a text that is not there, empty or damaged; a large one is read later."""
    from featherweight.text.corpus import require_corpus

    size = path.stat().st_size if path.is_file() else 0
    if not path.is_dir() and size <= LARGE_BYTES:
        require_corpus(source)
    if path.is_file() and not size:
        raise ConfigError(f"corpus: corpus={source} is empty; expected text. Choose another file.")


def _require_enough(micro_batch_size: int, rows: Any, reason: str) -> None:
    if isinstance(rows, int) and rows < micro_batch_size:
        raise ConfigError(
            f"recipe: micro_batch_size={micro_batch_size} is more than the data can fill ({reason}); expected at most "
            f"{max(rows, 1)}. Lower it, and raise accumulation_steps if a step should hold as many rows."
        )


def _is_missing(source: str) -> bool:
    return not source.startswith("hf:") and not Path(source).expanduser().exists()
