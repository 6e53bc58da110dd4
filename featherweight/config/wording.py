"""Values in the words of messages: their kind as a YAML file calls it, and a short form."""

from collections.abc import Mapping, Sequence


def kind_of(value: object) -> str:
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


def shorten(value: object, limit: int = 60) -> str:
    """Return a value as Python writes it, cut to `limit` characters."""
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."
