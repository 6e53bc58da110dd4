"""Methods: named changes of a model that can be applied, removed and put into a recipe."""

from featherweight.methods.construction import ConstructionHandle
from featherweight.methods.core_gradient import CoreGradient
from featherweight.methods.host_weights import HostWeights
from featherweight.methods.int8 import Int8, dequantized_state_dict
from featherweight.methods.method import Method, applied_methods, groups_by_methods, methods, parse_methods
from featherweight.methods.mst import MsT

__all__ = [
    "ConstructionHandle",
    "CoreGradient",
    "HostWeights",
    "Int8",
    "Method",
    "MsT",
    "applied_methods",
    "dequantized_state_dict",
    "groups_by_methods",
    "methods",
    "parse_methods",
]
