"""Methods: named changes of a model that can be applied, removed and put into a recipe.

Names load on first use: what a recipe lists is judged before torch is imported.
"""

from typing import TYPE_CHECKING, Any

from featherweight.lazy_names import load_name

if TYPE_CHECKING:
    from featherweight.methods.construction import ConstructionHandle
    from featherweight.methods.core_gradient import CoreGradient
    from featherweight.methods.int8 import Int8, dequantized_state_dict
    from featherweight.methods.method import Method, applied_methods, groups_by_methods, parse_methods
    from featherweight.methods.mst import MsT
    from featherweight.methods.named import methods

_LAZY = {
    "ConstructionHandle": "featherweight.methods.construction",
    "CoreGradient": "featherweight.methods.core_gradient",
    "Int8": "featherweight.methods.int8",
    "Method": "featherweight.methods.method",
    "MsT": "featherweight.methods.mst",
    "applied_methods": "featherweight.methods.method",
    "dequantized_state_dict": "featherweight.methods.int8",
    "groups_by_methods": "featherweight.methods.method",
    "methods": "featherweight.methods.named",
    "parse_methods": "featherweight.methods.method",
}

__all__ = [
    "ConstructionHandle",
    "CoreGradient",
    "Int8",
    "Method",
    "MsT",
    "applied_methods",
    "dequantized_state_dict",
    "groups_by_methods",
    "methods",
    "parse_methods",
]


def __getattr__(name: str) -> Any:
    return load_name(__name__, _LAZY, name)


def __dir__() -> list[str]:
    return sorted(__all__)
