"""Methods: named changes of a model that can be applied, removed and put into a recipe."""

from featherweight.methods.construction import ConstructionHandle
from featherweight.methods.method import Method, applied_methods, methods, parse_methods
from featherweight.methods.mst import MsT

__all__ = ["ConstructionHandle", "Method", "MsT", "applied_methods", "methods", "parse_methods"]
