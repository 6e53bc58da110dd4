"""Doing something right before or after another package is imported, without importing it oneself.

`import featherweight` must stay light, and still PEFT has to know of S2FT once both are imported, in either order.
"""

import importlib
import importlib.util
import logging
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


def import_after(package: str, ours: str, before: Callable[[], None] | None = None) -> None:
    """Import one of our modules as soon as a package is there; at once if it is there already.

    Args:
        package: such as "peft"; never imported by this function.
        ours: full name of the module.
        before: called right before the package is imported.
    """
    if package in sys.modules:
        importlib.import_module(ours)
    elif not any(isinstance(finder, _Watch) and finder.ours == ours for finder in sys.meta_path):
        sys.meta_path.insert(0, _Watch(package, ours, before))


def without_kernel_advice() -> None:
    """Keep bitsandbytes from saying at its import that a kernel for 4-bit layers on CPUs is not installed.

    PEFT imports bitsandbytes wherever it is installed. Nothing here runs its 4-bit layers, so that the advice, a
    warning on standard error, would be about nothing. Its other messages stay.
    """
    logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(_is_other_than_kernel_advice)


def _is_other_than_kernel_advice(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("Failed to load CPU gemm_4bit_forward")


class _Watch(MetaPathFinder):
    """Finds nothing itself; lets the loader of one package import our module when it is done."""

    def __init__(self, package: str, ours: str, before: Callable[[], None] | None = None) -> None:
        self.package, self.ours, self.before = package, ours, before

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the ordinary specification of the package, with one more thing to do; None for all other names."""
        if fullname != self.package:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_both(module: ModuleType) -> None:
                if self.before is not None:
                    self.before()
                execute(module)
                importlib.import_module(self.ours)

            spec.loader.exec_module = execute_both  # type: ignore[method-assign]
        return spec
