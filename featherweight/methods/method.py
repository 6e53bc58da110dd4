"""What a method is, and how one is applied to a model and removed from it.

A method is a frozen set of options that knows how to change a model in place. `methods` names those that a recipe may
choose. `tests/contracts/test_method.py` holds every one to this page.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.optim import Optimizer

from featherweight.errors import ConfigError
from featherweight.methods.named import methods, named_options, where_of
from featherweight.methods.options import MethodOptions
from featherweight.methods.sealed_folder import unwatch_saving, watch_saving
from featherweight.methods.stale_optimizer import noting_exchanges
from featherweight.ownership import Part, refuse_owned
from featherweight.report import Report
from featherweight.unwrap import unwrap_model

# A plain attribute, so that a deep copy of a model knows what was done to the original.
_ATTRIBUTE = "_featherweight_methods"


class Method(MethodOptions, ABC):
    """A named change of a model: its options, how it is made and how it is undone.

    What a method remembers of a model it leaves on the model, never on itself. What has a default here is what a method
    may know more.
    """

    @abstractmethod
    def apply(self, model: nn.Module, calibration: Any = None) -> Report:
        """Change the model in place and say what was changed; a model that cannot be changed stays as it was.

        Users call `fw.apply`, which also remembers what was applied.
        """

    @abstractmethod
    def remove(self, model: nn.Module) -> None:
        """Undo the change; users call `fw.remove`."""

    def after_step(self, model: nn.Module, optimizer: Optimizer, step: int) -> None:
        """Do what is due after an optimizer step; nothing by default.

        Args:
            model: that was given to `apply`, wrapped for data parallelism or not.
            optimizer: that has made the step.
            step: optimizer steps that are done, this one included.
        """

    def param_groups(
        self, model: nn.Module, lr: float, groups: list[dict[str, Any]] | None = None
    ) -> list[dict[str, Any]]:
        """Return the groups that an optimizer of the model should have; by default those that are given.

        Args:
            model: that was given to `apply`.
            lr: base rate of the optimizer.
            groups: groups of named parameters to divide further; None takes all that trains as one group.
        """
        trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
        return [{"params": trained}] if groups is None else groups

    def state_dict(self, model: nn.Module) -> dict[str, Any]:
        """Return what a checkpoint must hold besides the weights, as numbers, text and plain containers."""
        return {}

    def load_state_dict(self, model: nn.Module, state: Mapping[str, Any]) -> None:
        """Take over such a state; the weights are loaded by then."""

    def report(self, model: nn.Module) -> Report:
        """Tell what happened to the model since `apply`; by default a report without sections."""
        return Report(type(self).__name__)

    def saving(self, model: nn.Module, folder: Path) -> AbstractContextManager[None]:
        """Give the model the form in which `folder` is written while the block runs; own files go beside `folder`.

        For methods whose result is more than the weights of a model that its ecosystem opens.
        """
        return nullcontext()


def apply(model: nn.Module, method: Method, calibration: Any = None) -> Report:
    """Apply a method to a model, in place.

    Args:
        model: stays the same object, with the same class and the same names of parameters.
        method: what to do, such as `fw.MsT()`.
        calibration: data, for methods that need some.
    Returns:
        What was changed, and what was left alone and why.
    Raises:
        ConfigError: if `method` is none, if one of its kind is applied already, if it does not fit the model, or if it
            exchanges parameters that an optimizer updates layer-wise.
    Example:
        >>> from featherweight.methods import MsT
        >>> from featherweight.models import load_model
        >>> model = load_model("tiny")
        >>> report = apply(model, MsT())
        >>> remove(model, MsT())
    """
    check_method(method)
    for other in applied_methods(model):
        if type(other) is type(method):
            raise ConfigError(
                f"apply: method={type(method).__name__} is applied to this model already ({other!r}); expected it "
                f"once. Call fw.remove(model, {other!r}) first."
            )
    _require_free_parameters(model, method, "apply")
    with noting_exchanges(model, f"fw.apply of {type(method).__name__}"), _outside_of_inference():
        report = method.apply(model, calibration)
    setattr(model, _ATTRIBUTE, [*applied_methods(model), method])
    watch_saving(model)
    return report


def remove(model: nn.Module, method: Method) -> None:
    """Undo what `apply` did; the model computes as before.

    Args:
        model: that was given to `apply`, or a deep copy of it.
        method: the method, or any other of its kind.
    Raises:
        ConfigError: if no method of this kind is applied, a later one stands on the layers that it has made, something
            else was wrapped around it since, or an optimizer updates parameters layer-wise that it would exchange.
    """
    check_method(method)
    applied = [one for one in applied_methods(model) if type(one) is type(method)]
    if not applied:
        names = [type(one).__name__ for one in applied_methods(model)]
        raise ConfigError(
            f"remove: method={type(method).__name__} is not applied to this model; expected one of {names}. "
            "Give the model that was given to fw.apply."
        )
    _require_free_parameters(model, method, "remove")
    _require_outermost(model, applied[0])
    with noting_exchanges(model, f"fw.remove of {type(method).__name__}"):
        applied[0].remove(model)
    rest = [one for one in applied_methods(model) if one is not applied[0]]
    if rest:
        setattr(model, _ATTRIBUTE, rest)
    else:
        delattr(model, _ATTRIBUTE)
        unwatch_saving(model)


def _outside_of_inference() -> AbstractContextManager[Any]:
    """Leave torch's inference mode for the block: what a method makes there could never be trained."""
    return torch.inference_mode(False) if torch.is_inference_mode_enabled() else nullcontext()


def _require_free_parameters(model: nn.Module, method: Method, where: str) -> None:
    """Refuse a method that exchanges or freezes parameters while layer-wise updates hang on them."""
    if not method.keeps_parameters:
        for name, parameter in model.named_parameters():
            refuse_owned(Part.GRADIENT, parameter, f"{where} {type(method).__name__}", name=name)


def _require_outermost(model: nn.Module, method: Method) -> None:
    """Refuse to take layers away from under a method that has exchanged parameters after this one."""
    every = applied_methods(model)
    later = [one for one in every[every.index(method) + 1 :] if not one.keeps_parameters]
    if later and not method.keeps_parameters:
        kinds = ", ".join(type(one).__name__ for one in later)
        raise ConfigError(
            f"remove: method={type(method).__name__} was applied before {kinds}, which stands on its layers; expected "
            f"the last one first. Call fw.remove(model, fw.{type(later[-1]).__name__}()) before."
        )


def applied_methods(model: nn.Module) -> list[Method]:
    """Return the methods that are applied to a model, in order."""
    return list(vars(model).get(_ATTRIBUTE, []))


def groups_by_methods(model: nn.Module, lr: float, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return parameter groups as all methods of a model want them; see `Method.param_groups`."""
    inner = unwrap_model(model)
    for method in applied_methods(inner):
        groups = method.param_groups(inner, lr, groups)
    return groups


def parse_methods(entries: Sequence[Any]) -> list[Method]:
    """Return the methods that a recipe lists.

    Args:
        entries: each a name, or a mapping of one name to its options: ``{"mst": {"chunk_size": 512}}``.
    Raises:
        ConfigError: if a name is unknown or stands twice, or an option is not allowed.
    Example:
        >>> parse_methods([{"mst": {"chunk_size": 512}}])[0].chunk_size
        512
    """
    found = ((methods.get(name), name, options) for name, options in named_options(entries))
    return [cast("type[Method]", method).parse(options, where=where_of(name)) for method, name, options in found]


def check_method(method: object) -> None:
    """Refuse what is no method.

    Raises:
        ConfigError: for anything else, a class of methods included.
    """
    if not isinstance(method, Method):
        raise ConfigError(
            f"apply: method={method!r} is no method; expected an object such as fw.MsT(). "
            f"Known methods: {', '.join(methods.names())}."
        )
