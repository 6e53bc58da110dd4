"""Who owns which parameter or module of a model: one table that is asked before anything is hooked or patched.

A part of a thing can have one owner at a time: the gradient of a parameter (layer-wise updates consume it inside the
backward pass), the `forward` of a module (MsT, core gradients), the values of a weight (a change in place). The table
refers to owners and to what they own weakly: a claim ends with `release`, with its owner, or with the thing. A deep
copy is another thing, so it starts without claims; what a copy inherits by its attributes, it claims itself.
"""

import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from featherweight.errors import ConfigError

Thing = Tensor | nn.Module


class Part(StrEnum):
    """What of a parameter or module is owned."""

    GRADIENT = "gradient"
    """Of a parameter: the owner takes it away before anybody else sees it."""
    FORWARD = "forward"
    """Of a module: the owner has put another function there."""
    WEIGHT = "weight"
    """Of a parameter: the owner writes values there, and will take them out again."""


@dataclass(frozen=True)
class _Claim:
    owner: "weakref.ref[Any]"
    words: str
    way_out: str


_claims: dict[Part, WeakIdKeyDictionary] = {part: WeakIdKeyDictionary() for part in Part}


def claim(part: Part, thing: Thing, owner: object, *, words: str, way_out: str, name: str = "") -> None:
    """Enter an owner; nothing happens if it is entered already.

    Args:
        part: what is claimed.
        thing: of which parameter or module.
        owner: lives as long as the claim; anything that can be referred to weakly.
        words: who that is, for messages: "MsT".
        way_out: what ends the claim, as a sentence: "Call fw.remove(model, fw.MsT()) first."
        name: of the thing in its model, for messages.
    Raises:
        ConfigError: if another one owns this part.
    """
    refuse_owned(part, thing, words, name=name, but=owner)
    _claims[part][thing] = _Claim(weakref.ref(owner), words, way_out)


def release(part: Part, thing: Thing, owner: object) -> None:
    """End the claim of an owner; nothing happens if it has none."""
    if owner_of(part, thing) is owner:
        del _claims[part][thing]


def owner_of(part: Part, thing: Thing) -> Any | None:
    """Return who owns a part of a parameter or module; None if nobody does."""
    found: _Claim | None = _claims[part].get(thing)
    return None if found is None else found.owner()


def owners_of(part: Part, things: Iterable[Thing]) -> list[Any]:
    """Return all who own a part of some parameters or modules, each once."""
    if not _claims[part]:
        return []
    owners = (owner_of(part, thing) for thing in things)
    return list({id(owner): owner for owner in owners if owner is not None}.values())


def refuse_owned(part: Part, thing: Thing, where: str, *, name: str = "", but: object = None) -> None:
    """Refuse a parameter or module of which somebody owns a part.

    Args:
        part: that `where` wants for itself.
        thing: the parameter or module.
        where: who asks, for the message.
        name: of the thing in its model; the default is its class.
        but: an owner that is none of others.
    Raises:
        ConfigError: if somebody else owns it.
    """
    found: _Claim | None = _claims[part].get(thing)
    owner = None if found is None else found.owner()
    if found is not None and owner is not None and owner is not but:
        kind = "module" if isinstance(thing, nn.Module) else "parameter"
        raise ConfigError(
            f"{where}: {kind}='{name or type(thing).__name__}' has an owner already, {found.words} owns its {part}; "
            f"expected one that nobody owns. {found.way_out}"
        )
