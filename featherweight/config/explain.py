"""Pydantic's errors in the words of the house: one sentence per place, with the nearest spelling."""

from typing import Any

import annotated_types
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from featherweight.config.field_types import field_at, known_keys, user_path
from featherweight.config.wording import shorten
from featherweight.errors import did_you_mean


def explain(root: type[BaseModel], error: ValidationError, where: str) -> list[str]:
    """Turn pydantic's list of errors into house sentences, one per place."""
    places: dict[tuple[str | int, ...], list[Any]] = {}
    for detail in error.errors(include_url=False):
        last_is_key = detail["type"] in ("extra_forbidden", "missing")
        places.setdefault(user_path(root, detail["loc"], last_is_key=last_is_key), []).append(detail)
    return [_sentence(root, path, details, where) for path, details in places.items()]


_BOUNDS = ("greater_than", "greater_than_equal", "less_than", "less_than_equal")


def _sentence(root: type[BaseModel], path: tuple[str | int, ...], details: list[Any], where: str) -> str:
    name = ".".join(map(str, path))
    field = field_at(root, path)
    description = " ".join((field.description or "").split()) if field else ""
    meaning = f" ({path[-1]}: {description.partition('. ')[0].rstrip('.')})" if description else ""
    detail = details[0]
    if detail["type"] == "extra_forbidden":
        known = known_keys(root, path[:-1]) or []
        hint = did_you_mean(str(path[-1]), known)
        return f"{where}: {name}={shorten(detail['input'])} is unknown; expected a known key. {hint}"
    advice = f"Set it to an allowed value{meaning}."
    if detail["type"] == "missing":
        return f"{where}: {name} is missing; expected a value. Give it one{meaning}."
    if detail["type"] in ("value_error", "assertion_error"):
        # Raised by a validator of the settings class, which knows best what is wrong.
        reason = str(detail["ctx"]["error"]).strip()
        return f"{where}: {name}={shorten(detail['input'])} {reason}" if path else f"{where}: {reason}"
    if all(one["type"] in _BOUNDS for one in details):
        return (
            f"{where}: {name}={shorten(detail['input'])} is out of range; expected {_bounds(field, detail)}. {advice}"
        )
    # Several details at one place are the branches of a union: any of them would do.
    allowed = " or ".join(dict.fromkeys(_allowed(one) for one in details))
    return f"{where}: {name}={shorten(detail['input'])} is not allowed; expected {allowed}. {advice}"


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
