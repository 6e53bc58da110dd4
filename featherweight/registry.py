"""Names for things that a recipe may choose: optimizers, tasks, methods, corpora.

An entry is the thing itself or a string "module:attribute" that is imported when somebody first asks for it. So a table
of names costs no import, and a row of the house may name what stands in a higher one without depending on it. Packages
that a user has installed add entries by entry points, files of a user's own by `register`.
"""

import importlib
import warnings
from collections.abc import Iterator
from typing import Generic, TypeVar, cast

from featherweight.errors import ConfigError, did_you_mean

T = TypeVar("T")


class Registry(Generic[T]):
    """A table from names to things of one kind, filled at import time and read by name.

    Args:
        kind: what the entries are, in the singular ("optimizer"); it opens every message.
        group: of entry points by which installed packages add entries; None: they add none. They are looked for when
            a name is unknown or all names are asked for, and imported when one is used.

    Example:
        >>> counters = Registry("counter")
        >>> counters.register("ordered", "collections:OrderedDict")
        >>> counters.get("ordered").__name__
        'OrderedDict'
        >>> counters.names()
        ['ordered']
    """

    def __init__(self, kind: str, group: str | None = None) -> None:
        self.kind, self.group = kind, group
        self._has_looked = group is None
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
        if not isinstance(value, str):
            # A class that a notebook defines anew takes the place of its former self.
            self._entries[name] = value
            self._resolved.pop(name, None)
        self._entries.setdefault(name, value)

    def get(self, name: str) -> T:
        """Return the thing behind a name, importing it if needed.

        Raises:
            ConfigError: if the name is unknown (names the nearest one), or its address leads nowhere.
            ImportError: whatever the module itself raises, such as `MissingExtraError`.
        """
        self.require(name)
        if name not in self._resolved:
            entry = self._entries[name]
            self._resolved[name] = self._import(name, entry) if isinstance(entry, str) else entry
        return self._resolved[name]

    def require(self, name: str) -> None:
        """Refuse a name that is unknown; nothing is imported.

        Raises:
            ConfigError: names the nearest one.
        """
        if name not in self:
            raise ConfigError(
                f"{self.kind}: name={name!r} is unknown; expected one of {len(self)} registered names. "
                f"{did_you_mean(str(name), self.names())}"
            )

    def names(self) -> list[str]:
        """Return all names, in the order of registration, those of installed packages last."""
        self._look_for_packages()
        return list(self._entries)

    def __contains__(self, name: object) -> bool:
        if name not in self._entries:
            self._look_for_packages()
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __len__(self) -> int:
        return len(self.names())

    def _look_for_packages(self) -> None:
        """Take in the entry points of installed packages, once; a name that is taken stays what it was."""
        if self._has_looked or self.group is None:
            return
        self._has_looked = True
        from importlib.metadata import entry_points

        for found in entry_points(group=self.group):
            address = f"{found.module}:{found.attr}"
            if self._entries.setdefault(found.name, address) != address:
                package = found.dist.name if found.dist is not None else found.module
                warnings.warn(
                    f"{self.kind} registry: name='{found.name}' of the package {package} ({address}) is taken and "
                    "passed over; expected another name. Ask its author to rename it.",
                    stacklevel=3,
                )

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
