"""Public names of a package that load their module on first use (PEP 562), so that importing the package stays fast."""

import importlib
import sys
from collections.abc import Mapping
from typing import Any


def load_name(package: str, places: Mapping[str, str], name: str) -> Any:
    """Return a public name of a package, and keep it there; a package calls this from its ``__getattr__``.

    Args:
        package: its ``__name__``.
        places: public name to the module that defines it, or "module:attribute" where it has another name there.
        name: what is asked for.
    Raises:
        AttributeError: if it is no public name.
    """
    if name not in places:
        raise AttributeError(f"module {package!r} has no attribute {name!r}")
    module, _, attribute = places[name].partition(":")
    value = getattr(importlib.import_module(module), attribute or name)
    setattr(sys.modules[package], name, value)
    return value
