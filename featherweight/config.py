"""Strict, frozen settings, and their way into and out of files.

Every options object of the package derives from `Config`: unknown keys, wrong types and values out of range are refused
with one sentence that names the key, its value, what is allowed and the nearest spelling. The same rules hold for a
constructor call, a mapping, a YAML or JSON file and an override on the command line.

YAML follows the core schema of version 1.2: `1e-3` is a number, `yes` and `2024-01-01` are text, a key may stand once.
"""

import json
import os
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, Union

import annotated_types
import yaml
from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema

from featherweight.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from pydantic._internal._model_construction import ModelMetaclass
else:
    ModelMetaclass = type(BaseModel)

SUFFIXES = (".yaml", ".yml", ".json")
"""File endings that `Config.from_file` and `Config.to_file` understand."""


def _forbid_conversion(schema: Any) -> Any:
    """Make numbers, booleans and text strict in a validation schema.

    Pydantic's own strict mode would also refuse a list for a tuple and text for a path, all that a file can hold.
    """
    if isinstance(schema, dict):
        strict = {"strict": True} if schema.get("type") in ("int", "float", "bool", "str") else {}
        # A default is a value, not a schema, even if it is a dict with a key "type".
        return {key: value if key == "default" else _forbid_conversion(value) for key, value in schema.items()} | strict
    if isinstance(schema, list | tuple):
        return type(schema)(_forbid_conversion(value) for value in schema)
    return schema


@typing.dataclass_transform(kw_only_default=True, field_specifiers=(Field,))
class _ParseOnCall(ModelMetaclass):
    """Sends `SomeConfig(...)` through `SomeConfig.parse`, so that every way to build one obeys the same rules."""

    if not TYPE_CHECKING:  # type checkers read the constructor's arguments from the fields instead

        def __call__(cls, **values: Any) -> Any:
            return cls.parse(values)


class Config(BaseModel, metaclass=_ParseOnCall):
    """Base of all settings: frozen, unknown keys forbidden, no silent conversion between types.

    A subclass lists its fields with a docstring under each one (meaning, unit, range, what `None` does); the docstring
    becomes the description in help texts and messages. Numbers are never read from text, nor whole numbers from
    booleans or fractions; a list is fine for a tuple, text for a path; `inf` and `nan` are refused. Every value must be
    one that a JSON file can hold.

    Example:
        >>> class Schedule(Config):
        ...     steps: int = 100
        ...     '''Optimizer steps.'''
        >>> Schedule(steps=20).to_dict()
        {'steps': 20}
        >>> Schedule(stpes=20)
        Traceback (most recent call last):
        featherweight.errors.ConfigError: Schedule: stpes=20 is unknown; expected a known key. Did you mean 'steps'?
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        validate_default=True,
        allow_inf_nan=False,
        ser_json_inf_nan="constants",
        protected_namespaces=(),
    )

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return _forbid_conversion(handler(source))

    @classmethod
    def parse(cls, mapping: Mapping[str, Any], *, where: str | None = None) -> Self:
        """Build the settings from a mapping.

        Args:
            mapping: keys and values; nested settings are mappings or `Config` objects.
            where: what to call the origin in messages (a file name); default: the name of the class.

        Raises:
            ConfigError: if a key is unknown or missing, or a value is not allowed. The message names every mistake.
        """
        where = where or cls.__name__
        if not isinstance(mapping, Mapping):
            raise ConfigError(
                f"{where}: value={_shorten(mapping)} is {_kind(mapping)}; expected a mapping of keys to values. "
                "Write one 'key: value' per line."
            )
        try:
            # Only plain values go on, so that what a file would hold is what every road sees.
            values = json.loads(json.dumps(mapping, default=_to_plain))
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"{where}: value={_shorten(mapping)} cannot be stored in a file ({error}); "
                "expected numbers, text, true, false, none, lists and mappings. Replace the other values."
            ) from error
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ConfigError("\n".join(_explain(cls, error, where))) from None

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Self:
        """Read the settings from a YAML or JSON file, chosen by its suffix.

        Raises:
            ConfigError: if the file cannot be read, is no YAML or JSON, holds no mapping, or holds a wrong setting.
        """
        return cls.parse(read_mapping(path), where=str(path))

    def to_file(self, path: str | os.PathLike[str]) -> None:
        """Write all settings to a YAML or JSON file, chosen by its suffix; `from_file` returns an equal object.

        The file appears complete or not at all. Missing folders are made.

        Raises:
            ConfigError: if the suffix is unknown or the file cannot be written.
        """
        suffix = _suffix(path)
        if suffix == ".json":
            text = json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n"
        else:
            text = yaml.dump(self.to_dict(), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
        write_atomically(path, text)

    def __setattr__(self, name: str, value: Any) -> None:
        try:
            super().__setattr__(name, value)
        except ValidationError:
            raise ConfigError(
                f"{type(self).__name__}: {name}={_shorten(value)} cannot be set; expected frozen settings to stay. "
                f"Use override(['{name}=...']), which returns a changed copy."
            ) from None

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain dicts, lists, numbers, strings, booleans and `None`; `parse` takes it back."""
        return self.model_dump(mode="json")

    def override(self, assignments: Iterable[str], *, where: str | None = None) -> Self:
        """Return a copy with some settings changed, as `fw train recipe.yaml optimizer.rank=64` does.

        Args:
            assignments: "key=value"; dots lead into nested settings and into plain dicts (which accept new keys), the
                value is YAML.
            where: what to call the origin in messages; default: the name of the class.

        Raises:
            ConfigError: if an assignment is malformed, its key unknown or its value not allowed.

        Example:
            >>> class Model(Config):
            ...     rank: int = 4
            ...     '''Rank.'''
            >>> Model().override(["rank=64"])
            Model(rank=64)
        """
        where = where or type(self).__name__
        values = self.to_dict()
        for assignment in assignments:
            key, equals, text = assignment.partition("=")
            path = key.strip().split(".")
            if not equals or not all(path):
                raise ConfigError(
                    f"{where}: override='{assignment}' is malformed; expected key=value. Write for example lr=1e-3."
                )
            try:
                value = yaml.load(text, _Loader)
            except yaml.YAMLError as error:
                raise ConfigError(
                    f"{where}: {key}={text} is no YAML value ({_yaml_reason(error)}); expected a number, text, list or "
                    "mapping. Quote text that holds special characters."
                ) from None
            _assign(values, path, value, type(self), where)
        return self.parse(values, where=where)


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
    except _RepeatedKeyError as error:
        raise ConfigError(
            f"{path}: key='{error.args[0]}' stands twice; expected each key once. Remove one of them."
        ) from None
    if not isinstance(content, dict):
        raise ConfigError(
            f"{path}: content is {_kind(content)}; expected a mapping of keys to values. Write one 'key: value' a line."
        )
    return content


def cache_folder() -> Path:
    """Return where the package keeps what it can make again: $FEATHERWEIGHT_CACHE, or ~/.cache/featherweight."""
    return Path(os.environ.get("FEATHERWEIGHT_CACHE") or "~/.cache/featherweight").expanduser()


def write_atomically(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Write a file so that readers see the old or the new content, never a part; missing folders are made.

    The content goes to a temporary name in the same folder, is flushed to the disk, then takes the place of the file.

    Args:
        path: the file to write or replace.
        content: text (written as UTF-8) or bytes.

    Raises:
        ConfigError: if the folder cannot be written or the disk is full. The old file is then untouched.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise ConfigError(
            f"{path}: file={path.name} cannot be written ({error.strerror}); expected a writable folder with space. "
            "Choose another folder or free some space."
        ) from error
    finally:
        # Still there only if something went wrong, an interrupt included.
        if os.access(temporary, os.F_OK):
            temporary.unlink()


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


def _to_plain(value: object) -> Any:
    if isinstance(value, Config):
        return value.to_dict()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return dict(value)
    plain = plain_number(value)
    if plain is value:
        raise TypeError(f"{type(value).__name__} is no plain value")
    return plain


def plain_number(value: Any) -> Any:
    """Return a number of numpy as one of Python, which files can hold and checks know; anything else as it is.

    Example:
        >>> import numpy as np
        >>> plain_number(np.int64(3)), plain_number([np.float32(0.5), "a"]), plain_number("b")
        (3, [0.5, 'a'], 'b')
    """
    if type(value).__module__ == "numpy" and getattr(value, "shape", None) == ():
        return value.item()
    if type(value) in (list, tuple):
        return type(value)(plain_number(one) for one in value)
    return value


def _kind(value: object) -> str:
    """Name the kind of a value in the words of a YAML file."""
    if value is None:
        return "empty"
    for types_, words in (
        (bool, "true or false"),
        (int, "a whole number"),
        (float, "a number"),
        (str, "text"),
        (Mapping, "a mapping"),
        (Sequence, "a list"),
    ):
        if isinstance(value, types_):
            return words
    return f"of type {type(value).__name__}"


def _shorten(value: object, limit: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def _assign(values: dict[str, Any], path: list[str], value: Any, root: type[Config], where: str) -> None:
    """Set `values[path[0]][path[1]]... = value`, refusing keys that the settings at that place do not have."""
    container = values
    for depth, key in enumerate(path):
        known = _known_keys(root, path[:depth])
        if known is not None and key not in known:
            raise ConfigError(
                f"{where}: {'.'.join(path)}={_shorten(value)} is unknown; expected a known key. "
                f"{did_you_mean(key, known)}"
            )
        if depth == len(path) - 1:
            container[key] = value
            return
        if container.get(key) is None:
            container[key] = {}
        if isinstance(container[key], str) and _may_be_mapping(root, path[: depth + 1]):
            # A name stands for the mapping with that name alone: "optimizer=galore optimizer.rank=64".
            container[key] = {"name": container[key]}
        if not isinstance(container[key], dict):
            group = ".".join(path[: depth + 1])
            raise ConfigError(
                f"{where}: {group}={_shorten(container[key])} is {_kind(container[key])} and has no key "
                f"'{path[depth + 1]}'; expected a mapping. Set {group} as a whole."
            )
        container = container[key]


def _options(annotation: Any) -> list[Any]:
    """Split a type into the alternatives that it allows: `int | list[Config] | None` has three."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _options(typing.get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return [option for argument in typing.get_args(annotation) for option in _options(argument)]
    return [annotation]


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _descend(options: list[Any], key: str | int) -> list[Any]:
    """Return the types that may stand under `key` of values of these types; empty if there is no such place."""
    below: list[Any] = []
    for option in options:
        arguments = typing.get_args(option)
        origin = typing.get_origin(option) or option
        if _is_model(option):
            if key in option.model_fields:
                below += _options(option.model_fields[key].annotation)
        elif isinstance(origin, type) and issubclass(origin, Mapping):
            below += _options(arguments[1]) if len(arguments) == 2 else [Any]
        elif isinstance(key, int) and isinstance(origin, type) and issubclass(origin, Sequence) and origin is not str:
            below += [choice for argument in arguments or (Any,) for choice in _options(argument)]
    return below


def _may_be_mapping(root: type[BaseModel], path: Sequence[str]) -> bool:
    options: list[Any] = [root]
    for key in path:
        options = _descend(options, key)
    origins = [typing.get_origin(option) or option for option in options]
    return any(isinstance(origin, type) and issubclass(origin, BaseModel | Mapping) for origin in origins)


def _known_keys(root: type[BaseModel], path: Sequence[str | int]) -> list[str] | None:
    """Return the keys that may stand below a path, or None if any may (a plain dict, or a value that has no keys)."""
    options: list[Any] = [root]
    for key in path:
        options = _descend(options, key)
    models = [option for option in options if _is_model(option)]
    return [name for model in models for name in model.model_fields] if models else None


def _user_path(root: type[BaseModel], location: Sequence[str | int], *, last_is_key: bool) -> tuple[str | int, ...]:
    """Drop from pydantic's location the labels of union branches, which no user wrote."""
    options: list[Any] = [root]
    path: list[str | int] = []
    for index, part in enumerate(location):
        below = _descend(options, part)
        if below or (last_is_key and index == len(location) - 1):
            path.append(part)
            options = below
    return tuple(path)


def _field_at(root: type[BaseModel], path: Sequence[str | int]) -> FieldInfo | None:
    options: list[Any] = [root]
    for key in path[:-1]:
        options = _descend(options, key)
    for option in options:
        if path and _is_model(option) and path[-1] in option.model_fields:
            return typing.cast(FieldInfo, option.model_fields[path[-1]])
    return None


def _explain(root: type[BaseModel], error: ValidationError, where: str) -> list[str]:
    """Turn pydantic's list of errors into house sentences, one per place."""
    places: dict[tuple[str | int, ...], list[Any]] = {}
    for detail in error.errors(include_url=False):
        last_is_key = detail["type"] in ("extra_forbidden", "missing")
        places.setdefault(_user_path(root, detail["loc"], last_is_key=last_is_key), []).append(detail)
    return [_sentence(root, path, details, where) for path, details in places.items()]


_BOUNDS = ("greater_than", "greater_than_equal", "less_than", "less_than_equal")


def _sentence(root: type[BaseModel], path: tuple[str | int, ...], details: list[Any], where: str) -> str:
    name = ".".join(map(str, path))
    field = _field_at(root, path)
    description = " ".join((field.description or "").split()) if field else ""
    meaning = f" ({path[-1]}: {description.partition('. ')[0].rstrip('.')})" if description else ""
    detail = details[0]
    if detail["type"] == "extra_forbidden":
        known = _known_keys(root, path[:-1]) or []
        hint = did_you_mean(str(path[-1]), known)
        return f"{where}: {name}={_shorten(detail['input'])} is unknown; expected a known key. {hint}"
    advice = f"Set it to an allowed value{meaning}."
    if detail["type"] == "missing":
        return f"{where}: {name} is missing; expected a value. Give it one{meaning}."
    if detail["type"] in ("value_error", "assertion_error"):
        # Raised by a validator of the settings class, which knows best what is wrong.
        reason = str(detail["ctx"]["error"]).strip()
        return f"{where}: {name}={_shorten(detail['input'])} {reason}" if path else f"{where}: {reason}"
    if all(one["type"] in _BOUNDS for one in details):
        return (
            f"{where}: {name}={_shorten(detail['input'])} is out of range; expected {_bounds(field, detail)}. {advice}"
        )
    # Several details at one place are the branches of a union: any of them would do.
    allowed = " or ".join(dict.fromkeys(_allowed(one) for one in details))
    return f"{where}: {name}={_shorten(detail['input'])} is not allowed; expected {allowed}. {advice}"


def _bounds(field: FieldInfo | None, detail: Any) -> str:
    signs = {annotated_types.Gt: ">", annotated_types.Ge: ">=", annotated_types.Lt: "<", annotated_types.Le: "<="}
    bounds = [
        f"{signs[type(bound)]} {getattr(bound, type(bound).__name__.lower())}"
        for bound in (field.metadata if field else ())
        if type(bound) in signs
    ]
    return " and ".join(bounds) or detail["msg"].removeprefix("Input should be ")


_WORDS = {
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "none_required": "none",
    "finite_number": "a finite number",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "list_type": "a list",
    "tuple_type": "a list",
    "path_type": "a path",
}


def _allowed(detail: Any) -> str:
    """Say what one error of pydantic would have accepted."""
    if detail["type"] in _WORDS:
        return _WORDS[detail["type"]]
    if detail["type"] == "union_tag_invalid":
        return f"{detail['ctx']['discriminator']} to be one of {detail['ctx']['expected_tags']}"
    message = detail["msg"].removeprefix("Input should be ").removeprefix("Input should ")
    return f"{message[0].lower()}{message[1:]}".rstrip(".")
