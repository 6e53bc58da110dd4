"""Methods by the name that a recipe uses, and what can be said of those that it lists before torch is imported."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from featherweight.errors import ConfigError
from featherweight.methods.options import MethodOptions
from featherweight.registry import Registry

methods: Registry[type[MethodOptions]] = Registry("method", "featherweight.methods")
"""Methods (`featherweight.methods.method.Method`) by the name that a recipe uses."""
method_options: Registry[type[MethodOptions]] = Registry("options of the method")
"""Their options alone, of those that this package brings; one of your own is asked itself."""

for _name, _place in (
    ("core_gradient", "core_gradient:CoreGradient"),
    ("mst", "mst:MsT"),
    ("int8", "int8:Int8"),
    ("base4bit", "base4bit:Base4bit"),
    ("welore", "welore.method:WeLore"),
    ("inrank", "inrank.method:InRank"),
    ("lora", "lora:LoRA"),
    ("s2ft", "s2ft.method:S2FT"),
):
    methods.register(_name, f"featherweight.methods.{_place}")
    method_options.register(_name, f"featherweight.methods.options:{_place.partition(':')[2]}Options")

_REFUSED = {
    "Int8": "trains weights in int8",
    "InRank": "trains weights whose rank grows",
    "WeLore": "trains factors of the weights",
    "CoreGradient": "serves weights that are trained",
}
"""Methods that want weights which are trained, or to be made something else; each with the reason."""


def parse_method_options(entries: Sequence[Any]) -> list[MethodOptions]:
    """Return the options of the methods that a recipe lists; without what the methods do.

    Args:
        entries: each a name, or a mapping of one name to its options: ``{"mst": {"chunk_size": 512}}``.
    Raises:
        ConfigError: if a name is unknown or stands twice, or an option is not allowed.
    """
    return [
        (method_options if name in method_options else methods).get(name).parse(options, where=where_of(name))
        for name, options in named_options(entries)
    ]


def where_of(name: str) -> str:
    """Return what messages call a method's entry."""
    return f"recipe methods {name}"


def named_options(entries: Sequence[Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the name and the options of each entry; ConfigError for what names none, or one that stands twice."""
    seen: set[str] = set()
    for entry in entries:
        entry = {entry: {}} if isinstance(entry, str) else entry
        if not isinstance(entry, Mapping) or len(entry) != 1:
            raise ConfigError(
                f"recipe methods: entry={entry!r} names no single method; expected a name, or one name with its "
                "options. Write for example {mst: {chunk_size: 512}}."
            )
        ((name, options),) = entry.items()
        methods.require(name)
        if name in seen:
            raise ConfigError(f"recipe methods: {name} stands twice; expected each method once. Remove one of the two.")
        seen.add(name)
        yield name, options or {}


def check_company(found: Sequence[MethodOptions]) -> None:
    """Refuse 4-bit weights beside methods that train the weights, without an adapter, or behind it.

    Args:
        found: of a recipe, in order, `Base4bit` among them.
    Raises:
        ConfigError: names the method.
    """
    names = [method.title for method in found]
    for name in names:
        if name in _REFUSED:
            raise ConfigError(
                f"recipe methods: base4bit freezes the weights, and {name} {_REFUSED[name]}; expected one of the two. "
                "Leave one out."
            )
    adapters = [names.index(name) for name in ("LoRA", "S2FT") if name in names]
    if not adapters:
        raise ConfigError(
            f"recipe methods: base4bit freezes every weight, and methods={names} train none; expected an adapter "
            "behind it. Write methods: [base4bit, lora], or leave base4bit out to train all weights."
        )
    if min(adapters) < names.index("Base4bit"):
        raise ConfigError(
            f"recipe methods: base4bit comes behind {names[min(adapters)]}, which then stands beside float weights; "
            "expected it first. Write methods: [base4bit, lora]."
        )
