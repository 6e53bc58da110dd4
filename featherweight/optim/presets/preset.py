"""What all presets share: declared options become arguments, a signature, and the text of `help()`."""

import inspect
import textwrap
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from featherweight.errors import did_you_mean
from featherweight.optim.low_rank import LowRankOptimizer
from featherweight.optim.options import StepOptions, defaults_of, options_of


class Preset(LowRankOptimizer):
    """Base of the presets. A preset names a family of options, and says where its defaults differ."""

    family: ClassVar[type] = StepOptions
    """The options that it has; see `featherweight.optim.options`."""
    own_defaults: ClassVar[Mapping[str, Any]] = {}
    """Defaults in which it differs from the declarations."""
    fixed: ClassVar[Mapping[str, Any]] = {}
    """Values of options that are no arguments."""
    positional: ClassVar[tuple[str, ...]] = ("lr", "betas", "eps", "weight_decay")
    """Arguments that may be given without a name, in this order."""
    not_shown: ClassVar[tuple[str, ...]] = ()
    """Options of the family that the signature leaves out."""

    def __init_subclass__(cls) -> None:
        defaults, own = cls.argument_defaults(), inspect.signature(cls.__init__).parameters.values()
        names = dict.fromkeys((*cls.positional, *defaults))
        kinds = {name: inspect.Parameter.POSITIONAL_OR_KEYWORD for name in ("params", *cls.positional)}
        arguments = [
            inspect.Parameter(name, kinds.get(name, inspect.Parameter.KEYWORD_ONLY), default=defaults[name])
            for name in names
        ]
        arguments += [one for one in own if one.kind is inspect.Parameter.KEYWORD_ONLY]
        ordered = [inspect.Parameter("params", kinds["params"]), *arguments]
        cls.__signature__ = inspect.Signature(ordered)  # type: ignore[attr-defined]
        cls.__doc__ = _with_options(inspect.cleandoc(cls.__doc__ or ""), cls)

    def __init__(self, params: Iterable[Any], *positional: Any, **options: Any) -> None:
        super().__init__(params, self.complete(positional, options))

    @classmethod
    def argument_defaults(cls) -> dict[str, Any]:
        """Return the arguments, `params` aside, with their defaults."""
        defaults = defaults_of(cls.family) | dict(cls.own_defaults)
        return {name: value for name, value in defaults.items() if name not in (*cls.fixed, *cls.not_shown)}

    @classmethod
    def complete(cls, positional: tuple[Any, ...], options: Mapping[str, Any]) -> dict[str, Any]:
        """Return all options: what is given, the preset's defaults, and those of the declarations.

        Args:
            positional: values that were given without a name.
            options: named ones.
        Raises:
            TypeError: for an unknown name, one that is given twice, or too many values, as Python itself raises it.
        """
        given = dict(zip(cls.positional, positional, strict=False))
        if len(positional) > len(given):
            raise TypeError(
                f"{cls.__name__}() takes {len(cls.positional)} options by position: {', '.join(cls.positional)}"
            )
        known = options_of(cls.family)
        for name in options:
            if name in given:
                raise TypeError(f"{cls.__name__}() got several values for argument '{name}'")
            if name not in known or name in cls.fixed:
                hint = did_you_mean(name, cls.argument_defaults())
                raise TypeError(f"{cls.__name__}() got an unexpected keyword argument '{name}'. {hint}")
        return {**defaults_of(cls.family), **cls.own_defaults, **given, **options, **cls.fixed}


def _with_options(text: str, preset: type[Preset]) -> str:
    """Return a docstring with the options of a preset below its `Args:`."""
    known, lines = options_of(preset.family), []
    for name, default in preset.argument_defaults().items():
        entry = f"{name}: {known[name].meaning} Default: {default!r}."
        lines += textwrap.wrap(entry, 112, initial_indent="    ", subsequent_indent="        ", break_on_hyphens=False)
    return text.replace("\nRaises:", "\n" + "\n".join(lines) + "\nRaises:", 1)
