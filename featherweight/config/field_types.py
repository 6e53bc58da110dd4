"""What may stand at a place of nested settings, read off the types of their fields."""

import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Union

from pydantic import BaseModel
from pydantic.fields import FieldInfo


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


def may_be_mapping(root: type[BaseModel], path: Sequence[str]) -> bool:
    """Return whether a mapping is one of the values allowed at a path."""
    options: list[Any] = [root]
    for key in path:
        options = _descend(options, key)
    origins = [typing.get_origin(option) or option for option in options]
    return any(isinstance(origin, type) and issubclass(origin, BaseModel | Mapping) for origin in origins)


def known_keys(root: type[BaseModel], path: Sequence[str | int]) -> list[str] | None:
    """Return the keys that may stand below a path, or None if any may (a plain dict, or a value that has no keys)."""
    options: list[Any] = [root]
    for key in path:
        options = _descend(options, key)
    models = [option for option in options if _is_model(option)]
    return [name for model in models for name in model.model_fields] if models else None


def user_path(root: type[BaseModel], location: Sequence[str | int], *, last_is_key: bool) -> tuple[str | int, ...]:
    """Drop from pydantic's location the labels of union branches, which no user wrote."""
    options: list[Any] = [root]
    path: list[str | int] = []
    for index, part in enumerate(location):
        below = _descend(options, part)
        if below or (last_is_key and index == len(location) - 1):
            path.append(part)
            options = below
    return tuple(path)


def field_at(root: type[BaseModel], path: Sequence[str | int]) -> FieldInfo | None:
    """Return the field at a path, or None if there is none."""
    options: list[Any] = [root]
    for key in path[:-1]:
        options = _descend(options, key)
    for option in options:
        if path and _is_model(option) and path[-1] in option.model_fields:
            return typing.cast(FieldInfo, option.model_fields[path[-1]])
    return None
