"""Changes of single settings by their dotted names, as on the command line."""

from typing import Any

from pydantic import BaseModel

from featherweight.config.field_types import known_keys, may_be_mapping
from featherweight.config.mapping_file import parse_value
from featherweight.config.wording import kind_of, shorten
from featherweight.errors import ConfigError, did_you_mean


def override(values: dict[str, Any], assignment: str, root: type[BaseModel], where: str) -> None:
    """Change a mapping of settings in place by one "key=value"; dots lead into nested settings, the value is YAML.

    Args:
        values: the settings as plain values.
        assignment: the change.
        root: the settings class, which knows the keys.
        where: what to call the origin in messages.

    Raises:
        ConfigError: if the assignment is malformed or its key unknown.
    """
    key, equals, text = assignment.partition("=")
    path = key.strip().split(".")
    if not equals or not all(path):
        raise ConfigError(
            f"{where}: override='{assignment}' is malformed; expected key=value. Write for example lr=1e-3."
        )
    try:
        value = parse_value(text)
    except ValueError as error:
        raise ConfigError(
            f"{where}: {key}={text} is no YAML value ({error}); expected a number, text, list or "
            "mapping. Quote text that holds special characters."
        ) from None
    if (run_together := _without_space(value)) is not None:
        name, _, rest = run_together.partition(":")
        raise ConfigError(
            f"{where}: {key}={text} has '{run_together}' without a space behind the colon; expected '{name}: {rest}'. "
            "Add the space, and quote the whole word for your shell."
        )
    _assign(values, path, value, root, where)


def _without_space(value: Any) -> str | None:
    """Return a key such as "name:pde", which YAML reads as one word without a value; None if there is none."""
    parts = value if isinstance(value, list) else value.values() if isinstance(value, dict) else ()
    own = [key for key, one in value.items() if one is None and ":" in str(key)] if isinstance(value, dict) else []
    return str(own[0]) if own else next((found for one in parts if (found := _without_space(one)) is not None), None)


def _assign(values: dict[str, Any], path: list[str], value: Any, root: type[BaseModel], where: str) -> None:
    """Set `values[path[0]][path[1]]... = value`, refusing keys that the settings at that place do not have."""
    container = values
    for depth, key in enumerate(path):
        known = known_keys(root, path[:depth])
        if known is not None and key not in known:
            raise ConfigError(
                f"{where}: {'.'.join(path)}={shorten(value)} is unknown; expected a known key. "
                f"{did_you_mean(key, known)}"
            )
        if depth == len(path) - 1:
            container[key] = value
            return
        if container.get(key) is None:
            container[key] = {}
        if isinstance(container[key], str) and may_be_mapping(root, path[: depth + 1]):
            # A name stands for the mapping with that name alone: "optimizer=galore optimizer.rank=64".
            container[key] = {"name": container[key]}
        if not isinstance(container[key], dict):
            group = ".".join(path[: depth + 1])
            raise ConfigError(
                f"{where}: {group}={shorten(container[key])} is {kind_of(container[key])} and has no key "
                f"'{path[depth + 1]}'; expected a mapping. Set {group} as a whole."
            )
        container = container[key]
