"""Options of S2FT, in the form in which PEFT reads, writes and passes them around."""

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, Literal

from peft import PeftConfig
from peft.utils import PeftType

from featherweight.errors import LISTED, ConfigError, did_you_mean
from featherweight.methods.s2ft.peft_type import add_peft_type

add_peft_type()

STRATEGIES = ("random", "weight", "activation", "product", "gradient", "spectral", "perturbation")
"""Ways to choose channels that have a name; a mapping of module names to indices and a function are two more."""

DEFAULT_R_EQUIVALENT = 16
"""How much is trained where nothing says so; small modules that have fewer parameters are then trained whole."""

STORED = "stored"
"""The strategy of a saved adapter: its channels stand in its file."""


def _help(text: str) -> dict[str, str]:
    return {"help": text}


@dataclass
class S2FTConfig(PeftConfig):
    """Structured sparse fine-tuning: train some attention heads and feed-forward channels, densely; freeze the rest.

    Exactly one of `num_channels`, `channel_ratio` and `r_equivalent` says how much is trained; without any, it is
    ``r_equivalent=16``. What each field means is in its help text (`dataclasses.fields`), as in PEFT.

    Raises:
        ConfigError: if fields contradict each other or a value is not allowed.
    Source: arXiv 2412.06289. Differs from the official code: channels are gathered where they are, so that nothing is
        permuted, several adapters fit one model and grouped-query attention works; equal numbers in each layer.
    Example:
        >>> S2FTConfig(r_equivalent=8).select
        'largest'
    """

    target_modules: list[str] | str | None = field(
        default=None,
        metadata=_help(
            "Names of modules (full, or their end), a regular expression of the whole name, or 'all-linear'. "
            "None takes the attention output and the last feed-forward matrix of the architecture."
        ),
    )
    exclude_modules: list[str] | str | None = field(
        default=None, metadata=_help("Names or a regular expression of modules to leave out.")
    )
    num_channels: int | None = field(default=None, metadata=_help("Channels to train in each module."))
    channel_ratio: float | None = field(
        default=None, metadata=_help("Share of the channels of each module to train, 0 < share <= 1.")
    )
    r_equivalent: int | None = field(
        default=None,
        metadata=_help("Train as many parameters in each module as LoRA of this rank has there."),
    )
    channel_pattern: dict[str, int | float] = field(
        default_factory=dict,
        metadata=_help(
            "Other amounts for some modules: name or end of a name or regular expression -> channels (whole number) or "
            "share (with a decimal point)."
        ),
    )
    axis_pattern: dict[str, str] = field(
        default_factory=dict,
        metadata=_help(
            "name or end of a name or regular expression -> 'input' (columns of the weight) or 'output' (rows). By "
            "default 'input' for attention output and last feed-forward matrices and for all-linear, else 'output'."
        ),
    )
    unit: Literal["auto", "head", "channel"] = field(
        default="auto",
        metadata=_help(
            "What is chosen as a whole. auto: heads of attention outputs if the amount is at least one head, else "
            "channels."
        ),
    )
    selection: Any = field(
        default="random",
        metadata=_help(
            f"How channels are chosen: one of {', '.join(STRATEGIES)}; a mapping of module names to indices; or a "
            "function (name, module, statistics) -> score of each channel. activation, product, gradient and "
            "perturbation need data: fw.s2ft.select(model, data, config)."
        ),
    )
    select: Literal["largest", "smallest"] = field(
        default="largest", metadata=_help("Which end of the scores is trained; random has no scores.")
    )
    scope: Literal["layer", "global"] = field(
        default="layer",
        metadata=_help("layer: the same amount in each layer. global: the best over all layers of a kind."),
    )
    seed: int = field(default=0, metadata=_help("Of random choices; each module draws from (seed, its name)."))
    multiple_of: int = field(
        default=8, metadata=_help("Amounts of channels are rounded up to a multiple of this, for tensor cores.")
    )
    spectral_rank: int = field(
        default=64, metadata=_help("Rank of the truncated weight that selection='spectral' scores.")
    )
    exclude: Any = field(
        default=None,
        metadata=_help(
            "Channels not to choose: adapters (folders, loaded adapters) or mappings of module names to indices, one "
            "or a list. Adapters without common channels fuse without conflicts."
        ),
    )
    compat: Literal["none", "official"] = field(
        default="none",
        metadata=_help(
            "official draws the heads and channels that the paper's code draws for a seed; amounts are then "
            "shares over all layers in channel_pattern, for the ends v_proj, o_proj, up_proj and down_proj."
        ),
    )
    update: Literal["delta", "inplace"] = field(
        default="delta",
        metadata=_help(
            "delta: the change stays beside the frozen weight. inplace: the weight holds the change while it trains; "
            "no extra product in the forward pass; needs a floating-point base."
        ),
    )
    layout: Literal["standard", "channel_major"] = field(
        default="standard",
        metadata=_help(
            "channel_major stores the base weights of input-axis modules by input channel: switching adapters then "
            "touches contiguous memory."
        ),
    )
    s2ft_dropout: float = field(
        default=0.0, metadata=_help("Share of the selected inputs that is dropped on their way to the change.")
    )
    bias: Literal["none", "all", "s2ft_only"] = field(
        default="none", metadata=_help("Biases to train: none, all, or those of the target modules.")
    )
    fan_in_fan_out: bool = field(
        default=False,
        metadata=_help("The weight is stored (in, out), as in GPT-2's Conv1D; found out by itself there."),
    )
    modules_to_save: list[str] | None = field(
        default=None, metadata=_help("Other modules to train whole and to save, such as a classification head.")
    )
    layers_to_transform: list[int] | int | None = field(
        default=None, metadata=_help("Numbers of the layers to change; None changes all.")
    )
    layers_pattern: list[str] | str | None = field(
        default=None, metadata=_help("Name of the list of layers, if it is not a usual one.")
    )
    init_weights: bool = field(
        default=True, metadata=_help("Start from zero, so that the model begins as it was; False draws random changes.")
    )
    module_channels: dict[str, int] | None = field(
        default=None, metadata=_help("Written, not read, by a new adapter: how many channels each module trains.")
    )
    base_fingerprint: dict[str, list[float]] | None = field(
        default=None, metadata=_help("Written with an adapter: shapes and samples of the weights that it belongs to.")
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType("S2FT")
        # PEFT compares names with a set.
        self.target_modules = set(self.target_modules) if isinstance(self.target_modules, list) else self.target_modules  # type: ignore[assignment]
        self.exclude_modules = (
            set(self.exclude_modules) if isinstance(self.exclude_modules, list) else self.exclude_modules  # type: ignore[assignment]
        )
        self._check_amounts()
        self._check_choices()
        if isinstance(self.target_modules, str) and self.layers_to_transform is not None:
            raise ConfigError(
                f"S2FTConfig: layers_to_transform={self.layers_to_transform} does not go with target_modules="
                f"{self.target_modules!r}; expected a list of names, or None. Write the layers into the expression."
            )
        if self.layers_pattern and self.layers_to_transform is None:
            raise ConfigError(
                f"S2FTConfig: layers_pattern={self.layers_pattern!r} stands without layers_to_transform; expected "
                "both. Set layers_to_transform, or leave layers_pattern out."
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON knows them; chosen channels are left to the adapter's file."""
        fields: dict[str, Any] = {**super().to_dict(), "exclude": None}
        if self.module_channels is not None:
            fields["selection"] = STORED
        elif not isinstance(self.selection, str):
            fields["selection"] = "random"
        return fields

    def _check_amounts(self) -> None:
        given = {
            name: value
            for name in ("num_channels", "channel_ratio", "r_equivalent")
            if (value := getattr(self, name)) is not None
        }
        if len(given) > 1:
            raise ConfigError(
                f"S2FTConfig: {' and '.join(f'{name}={value}' for name, value in given.items())} say twice how much to "
                "train; expected one of them. Keep one."
            )
        for name in ("num_channels", "r_equivalent", "multiple_of", "spectral_rank"):
            if getattr(self, name) is not None:
                setattr(self, name, _whole(name, getattr(self, name), least=1))
        self.seed = _whole("seed", self.seed, least=None)
        share = self.channel_ratio
        if share is not None and not (_is_number(share) and 0 < share <= 1):
            raise ConfigError(
                f"S2FTConfig: channel_ratio={share!r} is out of range; expected 0 < channel_ratio <= 1. Correct it."
            )
        self.channel_pattern = {
            pattern: _amount(f"channel_pattern[{pattern!r}]", amount)
            for pattern, amount in (self.channel_pattern or {}).items()
        }
        if not (_is_number(self.s2ft_dropout) and 0 <= self.s2ft_dropout < 1):
            raise ConfigError(
                f"S2FTConfig: s2ft_dropout={self.s2ft_dropout} is out of range; expected 0 <= share < 1. Correct it."
            )

    def _check_choices(self) -> None:
        allowed = {
            "unit": ("auto", "head", "channel"),
            "select": ("largest", "smallest"),
            "scope": ("layer", "global"),
            "compat": ("none", "official"),
            "update": ("delta", "inplace"),
            "layout": ("standard", "channel_major"),
            "bias": ("none", "all", "s2ft_only"),
        }
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise ConfigError(
                    f"S2FTConfig: {name}={getattr(self, name)!r} is unknown; expected one of {', '.join(values)}. "
                    f"{did_you_mean(str(getattr(self, name)), values, otherwise=LISTED)}"
                )
        if isinstance(self.selection, str):
            if self.selection not in (*STRATEGIES, STORED):
                raise ConfigError(
                    f"S2FTConfig: selection={self.selection!r} is unknown; expected one of {', '.join(STRATEGIES)}, a "
                    f"mapping or a function. {did_you_mean(self.selection, STRATEGIES, otherwise=LISTED)}"
                )
        elif not isinstance(self.selection, Mapping | Callable):
            raise ConfigError(
                f"S2FTConfig: selection={self.selection!r} is no strategy; expected a name, a mapping of module names "
                "to indices, or a function. Name one, such as 'random'."
            )
        for pattern, axis in self.axis_pattern.items():
            if axis not in ("input", "output"):
                raise ConfigError(
                    f"S2FTConfig: axis_pattern[{pattern!r}]={axis!r} is no axis; expected 'input' or 'output'. "
                    "Choose one."
                )
        if self.update == "inplace" and self.s2ft_dropout > 0:
            raise ConfigError(
                f"S2FTConfig: s2ft_dropout={self.s2ft_dropout} does not go with update='inplace', where the change is "
                "part of the weight; expected 0. Use update='delta'."
            )


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _whole(name: str, value: Any, *, least: int | None) -> int:
    """Return a whole number of any kind, numpy's too, as Python's own, which a file can hold.

    Raises:
        ConfigError: if it is none, or below `least`.
    """
    if isinstance(value, bool) or not hasattr(value, "__index__") or (least is not None and value < least):
        limit = "" if least is None else f" >= {least}"
        raise ConfigError(f"S2FTConfig: {name}={value!r} is out of range; expected a whole number{limit}. Correct it.")
    return operator.index(value)


def _amount(name: str, value: Any) -> int | float:
    """Return a number of channels or a share."""
    if isinstance(value, float) or (_is_number(value) and not hasattr(value, "__index__")):
        if 0 <= value <= 1:
            return float(value)
    elif _is_number(value) and value >= 0:
        return operator.index(value)
    raise ConfigError(
        f"S2FTConfig: {name}={value!r} is out of range; expected a whole number of channels >= 0, or a share from "
        "0.0 to 1.0. Correct it."
    )
