"""Names for things that a recipe may choose: optimizers, tasks, methods, corpora.

An entry is the thing itself or a string "module:attribute" that is imported when somebody first asks for it. So a table
of names costs no import, and a row of the house may name what stands in a higher one without depending on it.
"""

import importlib
from collections.abc import Iterator
from typing import Generic, TypeVar, cast

from featherweight.errors import ConfigError, did_you_mean

T = TypeVar("T")


class Registry(Generic[T]):
    """A table from names to things of one kind, filled at import time and read by name.

    Args:
        kind: what the entries are, in the singular ("optimizer"); it opens every message.

    Example:
        >>> counters = Registry("counter")
        >>> counters.register("ordered", "collections:OrderedDict")
        >>> counters.get("ordered").__name__
        'OrderedDict'
        >>> counters.names()
        ['ordered']
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T | str] = {}
        self._resolved: dict[str, T] = {}

    def register(self, name: str, value: T | str) -> None:
        """Give a name to a thing.

        Args:
            name: what users write.
            value: the thing, or "module:attribute" to import it on first use. A thing that is itself a string cannot be
                registered.

        Raises:
            ConfigError: if the name already stands for something else, or the string is not "module:attribute".
        """
        if isinstance(value, str) and not all(value.partition(":")):
            raise ConfigError(
                f"{self.kind} registry: {name}='{value}' is no address; expected 'module:attribute'. "
                "Write the full module name, a colon and the attribute."
            )
        if name in self._entries and not self._is_same(name, value):
            raise ConfigError(
                f"{self.kind} registry: name='{name}' is taken by {self._entries[name]!r}; expected a new name for "
                f"{value!r}. Choose another name."
            )
        self._entries.setdefault(name, value)

    def get(self, name: str) -> T:
        """Return the thing behind a name, importing it if needed.

        Raises:
            ConfigError: if the name is unknown (names the nearest one), or its address leads nowhere.
            ImportError: whatever the module itself raises, such as `MissingExtraError`.
        """
        if name not in self._entries:
            raise ConfigError(
                f"{self.kind}: name={name!r} is unknown; expected one of {len(self._entries)} registered names. "
                f"{did_you_mean(str(name), self.names())}"
            )
        if name not in self._resolved:
            entry = self._entries[name]
            self._resolved[name] = self._import(name, entry) if isinstance(entry, str) else entry
        return self._resolved[name]

    def names(self) -> list[str]:
        """Return all names, in the order of registration."""
        return list(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __len__(self) -> int:
        return len(self._entries)

    def _is_same(self, name: str, value: T | str) -> bool:
        known = self._entries[name]
        if known is value or name in self._resolved and self._resolved[name] is value:
            return True
        # An address and the thing at that address are the same value; comparing them must not import anything.
        return _address(known) == _address(value)

    def _import(self, name: str, address: str) -> T:
        module_name, _, attribute = address.partition(":")
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            # Only a missing target is our mistake; a package that the target needs is reported as it is.
            if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
                raise
            raise ConfigError(
                f"{self.kind} registry: {name}='{address}' leads to module '{error.name}', which does not exist; "
                "expected 'module:attribute' of an installed module. Correct the address or install the package."
            ) from error
        if not hasattr(module, attribute):
            public = [known for known in vars(module) if not known.startswith("_")]
            raise ConfigError(
                f"{self.kind} registry: {name}='{address}' leads to no attribute of '{module_name}'; expected a name "
                f"defined there. {did_you_mean(attribute, public)}"
            )
        return cast(T, getattr(module, attribute))


def _address(value: object) -> object:
    """Return "module:name" of a string, class or function; other objects only equal themselves."""
    if isinstance(value, str):
        return value
    module, qualified_name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    return f"{module}:{qualified_name}" if module and qualified_name else id(value)
