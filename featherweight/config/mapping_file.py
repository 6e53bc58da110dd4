"""Mappings in YAML and JSON files.

YAML follows the core schema of version 1.2: `1e-3` is a number, `yes` and `2024-01-01` are text, a key may stand once.
"""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from featherweight.config.files import write_atomically
from featherweight.config.wording import kind_of
from featherweight.errors import ConfigError, did_you_mean

SUFFIXES = (".yaml", ".yml", ".json")
"""File endings that `Config.from_file` and `Config.to_file` understand."""


def read_mapping(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the mapping that a YAML or JSON file holds, chosen by its suffix, without judging its keys.

    Raises:
        ConfigError: if the file is missing, a folder, unreadable, broken, or holds something else than a mapping.
    """
    suffix = _suffix(path)
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        siblings = [entry.name for entry in Path(path).parent.glob("*") if entry.suffix in SUFFIXES]
        hint = did_you_mean(Path(path).name, siblings) if siblings else "Check the path."
        raise ConfigError(f"{path}: file={Path(path).name} does not exist; expected a readable file. {hint}") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: file={Path(path).name} is a folder; expected a file. Name a file in it.") from None
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path}: byte={error.start} is no UTF-8 text; expected a text file. Save the file as UTF-8."
        ) from None
    except OSError as error:
        raise ConfigError(
            f"{path}: file={Path(path).name} cannot be read ({error.strerror}); expected a readable file. "
            "Check its permissions."
        ) from error
    try:
        content = json.loads(text, object_pairs_hook=_unique_keys) if suffix == ".json" else yaml.load(text, _Loader)
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"{path}: line={error.lineno} is no JSON ({error.msg}, column {error.colno}); expected one JSON object. "
            "Correct the line."
        ) from None
    except yaml.YAMLError as error:
        raise ConfigError(
            f"{path}: content is no YAML ({_yaml_reason(error)}); expected 'key: value' lines. Correct it."
        ) from None
    except RecursionError:
        raise ConfigError(f"{path}: content is nested too deeply; expected a few levels. Correct it.") from None
    except _RepeatedKeyError as error:
        raise ConfigError(
            f"{path}: key='{error.args[0]}' stands twice; expected each key once. Remove one of them."
        ) from None
    if not isinstance(content, dict):
        raise ConfigError(
            f"{path}: content is {kind_of(content)}; expected a mapping of keys to values. "
            "Write one 'key: value' a line."
        )
    return content


def write_mapping(path: str | os.PathLike[str], mapping: Mapping[str, Any]) -> None:
    """Write a mapping to a YAML or JSON file, chosen by its suffix; it appears complete or not at all.

    Raises:
        ConfigError: if the suffix is unknown or the file cannot be written.
    """
    if _suffix(path) == ".json":
        text = json.dumps(mapping, indent=2, ensure_ascii=False) + "\n"
    else:
        text = yaml_text(mapping)
    write_atomically(path, text)


def yaml_text(mapping: Mapping[str, Any], *, in_one_line: bool = False) -> str:
    """Return a mapping as YAML that `read_mapping` takes back.

    Args:
        mapping: of plain values.
        in_one_line: braces instead of lines: {name: cosine, warmup_steps: 10}.
    """
    width = 2**31 if in_one_line else 120
    style = True if in_one_line else False
    return yaml.dump(
        dict(mapping), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=width, default_flow_style=style
    )


def parse_value(text: str) -> Any:
    """Return the value that a piece of YAML holds.

    Raises:
        ValueError: if it is no YAML; the text says why.
    """
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ValueError(_yaml_reason(error)) from None
    except RecursionError:
        raise ValueError("nested too deeply") from None


class _RepeatedKeyError(Exception):
    """A JSON object names a key twice; Python's reader would silently keep the last."""


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping: dict[str, Any] = {}
    for key, value in pairs:
        if key in mapping:
            raise _RepeatedKeyError(key)
        mapping[key] = value
    return mapping


class _Loader(yaml.SafeLoader):
    """YAML 1.2 core schema with unique keys; PyYAML's own 1.1 reads `1e-3` as text, `no` as false and `1:30` as 90."""

    yaml_implicit_resolvers: dict[str, Any] = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            if isinstance(key_node, yaml.ScalarNode):
                if key_node.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"key '{key_node.value}' stands twice", key_node.start_mark
                    )
                seen.add(key_node.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Writes what `_Loader` reads: a text that would be read as a number gets quotes."""

    yaml_implicit_resolvers: dict[str, Any] = {}

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_str(self, data: str) -> yaml.ScalarNode:
        # The other line ends of Unicode come back from plain and single quotes as spaces.
        style = '"' if re.search("[\x85\u2028\u2029]", data) else None
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=style)


_Dumper.add_representer(str, _Dumper.represent_str)


for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(0|[1-9][0-9_]*)|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        r"[-+]?([0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*|[0-9][0-9_]*(?=[eE]))([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("merge", r"<<", "<"),
):
    for _class in (_Loader, _Dumper):
        # PyYAML's stubs know `add_implicit_resolver` only as an untyped function.
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), list(_first))


def _suffix(path: str | os.PathLike[str]) -> str:
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise ConfigError(
            f"{path}: suffix='{suffix}' is unknown; expected one of {', '.join(SUFFIXES)}. "
            "Rename the file after its format."
        )
    return suffix


def _yaml_reason(error: yaml.YAMLError) -> str:
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        return f"{error.problem}{place}"
    return str(error).partition("\n")[0]
