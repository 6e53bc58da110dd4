"""Methods: named changes of a model that can be applied, removed and put into a recipe."""

from featherweight.methods.core_gradient import CoreGradient
from featherweight.methods.int8 import Int8, dequantized_state_dict
from featherweight.methods.method import Method, methods, parse_methods
from featherweight.methods.mst import MsT

__all__ = ["CoreGradient", "Int8", "Method", "MsT", "dequantized_state_dict", "methods", "parse_methods"]
