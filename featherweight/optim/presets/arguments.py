"""From declared options to the arguments of a preset: completion, signature, and the text of `help()`.

What each preset chooses stands here, and not beside its class, so that recipes know it without torch.
"""

import inspect
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from featherweight.errors import did_you_mean
from featherweight.optim.options import (
    AdafactorOptions,
    AdamWOptions,
    ApolloOptions,
    FiraOptions,
    GaLoreOptions,
    GUMOptions,
    LDAdamOptions,
    QGaLoreOptions,
    ScaleOptions,
    TensorOptions,
    defaults_of,
    options_of,
)

if TYPE_CHECKING:
    # A recipe is judged before torch is imported.
    from featherweight.optim.low_rank import LowRankOptimizer

P = TypeVar("P", bound="type[LowRankOptimizer]")


@dataclass(frozen=True)
class Arguments:
    """The arguments of a preset, `params` aside: the options of a family, and where it differs from their defaults."""

    family: type
    """See `featherweight.optim.options`."""
    own_defaults: Mapping[str, Any] = field(default_factory=dict)
    """Defaults in which the preset differs from the declarations."""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Values of options that are no arguments."""
    positional: tuple[str, ...] = ("lr", "betas", "eps", "weight_decay")
    """Arguments that may be given without a name, in this order."""
    not_shown: tuple[str, ...] = ()
    """Options of the family that the signature leaves out."""

    @property
    def defaults(self) -> dict[str, Any]:
        """All shown arguments with their defaults."""
        defaults = {**defaults_of(self.family), **self.own_defaults}
        return {name: value for name, value in defaults.items() if name not in (*self.fixed, *self.not_shown)}

    def complete(self, where: str, positional: tuple[Any, ...], options: Mapping[str, Any]) -> dict[str, Any]:
        """Return all options: what is given, the preset's defaults, and those of the declarations.

        Args:
            where: name of the preset, for messages.
            positional: values that were given without a name.
            options: named ones.
        Raises:
            TypeError: for an unknown name, one that is given twice, or too many values, as Python itself raises it.
        """
        given = dict(zip(self.positional, positional, strict=False))
        if len(positional) > len(given):
            raise TypeError(f"{where}() takes {len(given)} options by position: {', '.join(given)}")
        known = options_of(self.family)
        for name in options:
            if name in given:
                raise TypeError(f"{where}() got several values for argument '{name}'")
            if name not in known or name in self.fixed:
                hint = did_you_mean(name, self.defaults)
                raise TypeError(f"{where}() got an unexpected keyword argument '{name}'. {hint}")
        return {**defaults_of(self.family), **self.own_defaults, **given, **options, **self.fixed}

    def signature(self, own: inspect.Signature) -> inspect.Signature:
        """Return the signature of a preset whose `__init__` has some arguments of its own."""
        by_name, kinds = inspect.Parameter.POSITIONAL_OR_KEYWORD, dict.fromkeys(self.positional)
        ordered = [inspect.Parameter("params", by_name)]
        for name in dict.fromkeys((*self.positional, *self.defaults)):
            kind = by_name if name in kinds else inspect.Parameter.KEYWORD_ONLY
            ordered.append(inspect.Parameter(name, kind, default=self.defaults[name]))
        return inspect.Signature([*ordered, *(one for one in own.parameters.values() if one.kind is one.KEYWORD_ONLY)])

    def documented(self, text: str) -> str:
        """Return a docstring with all options at the end of its `Args:`."""
        known, lines = options_of(self.family), []
        for name, default in self.defaults.items():
            entry = f"{name}: {known[name].meaning} Default: {default!r}."
            lines += textwrap.wrap(
                entry, 112, initial_indent="    ", subsequent_indent="        ", break_on_hyphens=False
            )
        return inspect.cleandoc(text).replace("\nRaises:", "\n" + "\n".join(lines) + "\nRaises:", 1)


# ---- where each preset differs from the declarations

ADAMW = Arguments(AdamWOptions, {"weight_decay": 1e-2}, fixed={"rank": None, "update_proj_gap": 1, "stagger": False})
GALORE = Arguments(GaLoreOptions, {"scale": 0.25})
Q_GALORE = Arguments(QGaLoreOptions, {"scale": 0.25, "state_bits": 8, "basis_bits": 4, "lazy": True})
GALORE_ADAFACTOR = Arguments(
    AdafactorOptions,
    {"scale": 0.25},
    fixed={"rule": "adafactor"},
    positional=("lr", "beta1", "weight_decay"),
    not_shown=("betas", "eps"),
)
APOLLO = Arguments(ApolloOptions, {"basis_method": "gaussian", "moment_policy": "keep", "residual": "apollo"})
APOLLO_MINI = Arguments(
    ApolloOptions,
    {
        "lr": 1e-2,
        "rank": 1,
        "scale": 128.0,
        "basis_method": "gaussian",
        "moment_policy": "keep",
        "residual": "apollo_tensor",
    },
)
FIRA = Arguments(FiraOptions, {"scale": 0.25, "residual": "fira"})
LDADAM = Arguments(
    LDAdamOptions,
    {"betas": (0.908, 0.99), "update_proj_gap": 1, "basis_smoothing": 0.908},
    fixed={"stagger": False},
)
LOW_RANK_MUON = Arguments(
    GUMOptions,
    {"full_rank_probability": 0.1},
    fixed={"rule": "muon"},
    positional=("lr", "momentum", "betas", "eps", "weight_decay"),
)
SCALE = Arguments(
    ScaleOptions, {"momentum": 0.9}, fixed={"rank": None, "update_proj_gap": 1, "stagger": False, "rule": "scale"}
)
TENSOR_GALORE = Arguments(
    TensorOptions, {"proj_type": "tucker_channels", "residual": "auto", "residual_weight": 1.0, "scale": "auto"}
)
TENSORGRAD = Arguments(TensorOptions, {"rank": 0.20, "sparse_ratio": 0.05})


def preset(arguments: Arguments) -> Callable[[P], P]:
    """Give a class of optimizers its arguments: the signature and the help that they say."""

    def give(cls: P) -> P:
        cls.__arguments__ = arguments
        cls.__signature__ = arguments.signature(inspect.signature(cls.__init__))  # type: ignore[attr-defined]
        cls.__doc__ = arguments.documented(cls.__doc__ or "")
        return cls

    return give


def arguments_of(optimizer: "LowRankOptimizer | type[LowRankOptimizer]") -> Arguments:
    """Return the arguments of a preset."""
    found: Arguments = optimizer.__arguments__
    return found


def complete(optimizer: "LowRankOptimizer", positional: tuple[Any, ...], options: Mapping[str, Any]) -> dict[str, Any]:
    """See `Arguments.complete`."""
    return arguments_of(optimizer).complete(type(optimizer).__name__, positional, options)
