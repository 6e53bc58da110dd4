"""Strict, frozen settings.

Every options object of the package derives from `Config`: unknown keys, wrong types and values out of range are refused
with one sentence that names the key, its value, what is allowed and the nearest spelling. The same rules hold for a
constructor call, a mapping, a YAML or JSON file and an override on the command line.
"""

import json
import os
import typing
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Self

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, ValidationError
from pydantic_core import CoreSchema

from featherweight.config.explain import explain
from featherweight.config.mapping_file import read_mapping, write_mapping
from featherweight.config.overrides import override
from featherweight.config.wording import kind_of, shorten
from featherweight.errors import ConfigError

if TYPE_CHECKING:
    from pydantic._internal._model_construction import ModelMetaclass
else:
    ModelMetaclass = type(BaseModel)


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
                f"{where}: value={shorten(mapping)} is {kind_of(mapping)}; expected a mapping of keys to values. "
                "Write one 'key: value' per line."
            )
        try:
            # Only plain values go on, so that what a file would hold is what every road sees.
            values = json.loads(json.dumps(mapping, default=_to_plain))
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"{where}: value={shorten(mapping)} cannot be stored in a file ({error}); "
                "expected numbers, text, true, false, none, lists and mappings. Replace the other values."
            ) from error
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ConfigError("\n".join(explain(cls, error, where))) from None

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
        write_mapping(path, self.to_dict())

    def __setattr__(self, name: str, value: Any) -> None:
        try:
            super().__setattr__(name, value)
        except ValidationError:
            raise ConfigError(
                f"{type(self).__name__}: {name}={shorten(value)} cannot be set; expected frozen settings to stay. "
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
            override(values, assignment, type(self), where)
        return self.parse(values, where=where)


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
