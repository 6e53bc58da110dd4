"""Another `forward` for one module, and the way back.

The class, the parameters and their names stay. One method owns the `forward` of a module at a time. What the new
`forward` needs is kept on the module itself, so that a deep copy of a model, or one from a pickle, is patched like the
original and independent of it.
"""

import copy
import functools
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from torch import nn

from featherweight import ownership
from featherweight.errors import ConfigError
from featherweight.ownership import Part

_ATTRIBUTE = "_featherweight_forward"


@dataclass
class _Patch:
    forward: types.MethodType
    function: Callable[..., Any]
    previous: Callable[..., Any] | None
    settings: Any
    method: str

    def claimed(self, name: str = "") -> "_Patch":
        """Enter this patch as the owner of its module's `forward`."""
        way_out = f"Call fw.remove(model, fw.{self.method}()) first."
        module = cast(nn.Module, self.forward.__self__)
        ownership.claim(Part.FORWARD, module, self, words=self.method, way_out=way_out, name=name)
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Patch":
        previous, settings = copy.deepcopy((self.previous, self.settings), memo)
        return _Patch(copy.deepcopy(self.forward, memo), self.function, previous, settings, self.method).claimed()

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickle, (self.forward.__self__, self.function, self.previous, self.settings, self.method)


def _unpickle(
    module: nn.Module,
    function: Callable[..., Any],
    previous: Callable[..., Any] | None,
    settings: Any,
    owner: str,
) -> _Patch:
    """Make a patch anew for a module that is still without attributes.

    The pickle of a bound method says "`forward` of that module". It is read after this patch, and finds what is put
    there now; else it would find the method of the class.
    """
    method = _bound(module, function)
    vars(module)["forward"] = method
    return _Patch(method, function, previous, settings, owner).claimed()


def patch_forward(
    module: nn.Module, forward: Callable[..., Any], settings: Any, *, method: str, name: str = ""
) -> None:
    """Let ``module(...)`` call ``forward(module, ...)``.

    Args:
        module: not patched yet; may have a `forward` of its own.
        forward: a function of a module's top level; it finds its settings and the original by `settings_of` and
            `original_forward`.
        settings: what it needs.
        method: class name of the method that owns it from now on, such as "MsT".
        name: of the module in its model, for messages.
    Raises:
        ConfigError: if the module is patched; it stays as it is.
    """
    ours, previous = _bound(module, forward), vars(module).get("forward")
    patch = _Patch(ours, forward, previous, settings, method).claimed(name)
    setattr(module, _ATTRIBUTE, patch)
    module.forward = ours  # after the patch, see `_unpickle`


def _bound(module: nn.Module, function: Callable[..., Any]) -> types.MethodType:
    @functools.wraps(type(module).forward)  # transformers reads the arguments of a model from its signature
    def bound(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return function(self, *args, **kwargs)

    return types.MethodType(bound, module)


def require_outermost(module: nn.Module) -> None:
    """Refuse a patched module whose `forward` something else has replaced since.

    Raises:
        ConfigError: if it is one.
    """
    patch: _Patch = vars(module)[_ATTRIBUTE]
    if vars(module).get("forward") != patch.forward:
        raise ConfigError(
            f"remove: forward of {type(module).__name__} was replaced by {vars(module).get('forward')!r} since; "
            "expected the one that fw.apply set. Remove the other wrapper first (accelerate: unwrap the model)."
        )


def unpatch_forward(module: nn.Module) -> None:
    """Bring the original back.

    Raises:
        ConfigError: if something else has replaced `forward` since.
    """
    require_outermost(module)
    patch: _Patch = vars(module)[_ATTRIBUTE]
    if patch.previous is None:
        del module.forward
    else:
        module.forward = patch.previous
    ownership.release(Part.FORWARD, module, patch)
    delattr(module, _ATTRIBUTE)


def is_patched(module: nn.Module) -> bool:
    """Tell whether `patch_forward` has changed this module."""
    return _ATTRIBUTE in vars(module)


def settings_of(module: nn.Module) -> Any:
    """Return the settings that a module was patched with."""
    return vars(module)[_ATTRIBUTE].settings


def original_forward(module: nn.Module) -> Callable[..., Any]:
    """Return what `forward` was before, bound to the module."""
    previous: Callable[..., Any] | None = vars(module)[_ATTRIBUTE].previous
    return types.MethodType(type(module).forward, module) if previous is None else previous
