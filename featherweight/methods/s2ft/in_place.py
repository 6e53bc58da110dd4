"""The layer whose change trains inside the frozen weight, so that its forward pass costs what the base's does.

Before each forward pass the weight is brought up to date with the adapters; whoever reads or writes the state sees the
base. An ordinary layer (`layer.Linear`) knows nothing of this, and becomes one of these when such an adapter comes.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from featherweight.errors import ConfigError
from featherweight.every_step import after_every_step
from featherweight.methods.s2ft.config import S2FTConfig
from featherweight.methods.s2ft.layer import Linear
from featherweight.methods.s2ft.targets import Target
from featherweight.nn.low_rank_linear import LowRank


class _OptimizerSteps:
    """Counts the steps of all optimizers of the process, from the first layer that trains in place."""

    def __init__(self) -> None:
        self.count = 0

    def start(self) -> None:
        after_every_step(self._add)

    def _add(self) -> None:
        self.count += 1


_OPTIMIZER_STEPS = _OptimizerSteps()


class InPlaceLinear(Linear):
    """A linear layer some of whose adapters train in place (`S2FTConfig.update`)."""

    _written: tuple[Any, ...] = ()
    """What the weight holds: the adapters and their states when they were written."""
    _copied_version: int | None = None
    """Of the base weight when this layer was copied; None in an original, and after the first forward pass."""

    def __init__(
        self,
        base_layer: nn.Module,
        adapter_name: str,
        target: Target,
        indices: Tensor,
        config: S2FTConfig,
        **kwargs: Any,
    ) -> None:
        super().__init__(base_layer, adapter_name, target, indices, config, **kwargs)
        self._begin()

    @staticmethod
    def take_over(layer: Linear) -> None:
        """Let an ordinary layer become one of these, in place, with the adapters that it has; one of these stays.

        Raises:
            ConfigError: for weights that are quantised or of low rank; the layer is then as before.
        """
        if not isinstance(layer, InPlaceLinear):
            require_float_matrix(layer.innermost(), layer.quantization_backend)
            layer.__class__ = InPlaceLinear
            cast(InPlaceLinear, layer)._begin()

    def _begin(self) -> None:
        require_float_matrix(self.innermost(), self.quantization_backend)
        _OPTIMIZER_STEPS.start()
        # Whoever reads or writes the state sees the base, not a change that trains in place.
        self.register_state_dict_pre_hook(_show_base)
        self.register_load_state_dict_pre_hook(_show_base)
        self.register_load_state_dict_pre_hook(_trust_base)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        weight = self.innermost()._parameters.get("weight")
        self._copied_version = None if weight is None else weight._version

    def forward(self, x: Tensor, *args: Any, adapter_names: list[str] | None = None, **kwargs: Any) -> Tensor:
        """Return the layer's output with the changes of the active adapters, or of one adapter for each row."""
        if adapter_names is not None:
            return super().forward(x, *args, adapter_names=adapter_names, **kwargs)
        if self.disable_adapters and self.merged:
            self.unmerge()
        in_place = self._follow()
        if self.disable_adapters or self.merged:
            return super().forward(x, *args, **kwargs)
        return self._changed(x, self.present(), *args, written=bool(in_place), **kwargs)

    def _beside(self, x: Tensor, names: Any, *args: Any, **kwargs: Any) -> Tensor:
        in_place = {name for name in names if self.s2ft_update[name] == "inplace"}
        if in_place and torch.is_grad_enabled():
            # The fused path cannot run: they get their gradients as a change beside the base.
            self._take_out()
            in_place = set()
        return super()._beside(x, [name for name in names if name not in in_place], *args, **kwargs)

    def _mixed_forward(self, x: Tensor, adapter_names: list[str], *args: Any, **kwargs: Any) -> Tensor:
        if self._written and not self.merged:
            self._take_out()
        return super()._mixed_forward(x, adapter_names, *args, **kwargs)

    def write(self, adapter_names: Sequence[str]) -> None:
        """Let the weight hold base plus the changes of exactly these adapters; see `S2FTLayer.write`."""
        super().write(adapter_names)
        self._written = self._key([name for name in adapter_names if name in self.s2ft_delta])

    def refresh(self) -> None:
        """Write adapters that train in place into the weight again; see `S2FTConfig.update`."""
        self._follow(force=True)

    def _take_out(self) -> None:
        is_changed = bool(self._slices)
        super()._take_out()
        if is_changed and self._copied_version is not None:
            self._copied_version = self.innermost().weight._version
        self._written = ()

    def _key(self, names: Sequence[str]) -> tuple[Any, ...]:
        """Return what tells whether the weight holds these changes as they are now."""
        # Fused kernels of optimizers move no version counter.
        steps = _OPTIMIZER_STEPS.count
        return tuple(
            (name, id(self.s2ft_delta[name]), self.s2ft_delta[name]._version, self.s2ft_scaling[name], steps)
            for name in names
        )

    def _follow(self, force: bool = False) -> list[str]:
        """Bring the weight up to date with the adapters that train in place, and return those."""
        if self.merged:
            return []
        active = [] if self.disable_adapters else self.present()
        names = [name for name in active if self.s2ft_update[name] == "inplace"]
        if names:
            self._require_own_base()
        if force or self._written != self._key(names):
            self.write(names)
        return names

    def _require_own_base(self) -> None:
        """Refuse a copy whose base weight something has written since it was made: it may hold a change for good.

        Raises:
            ConfigError: at the first forward pass of such a copy.
        """
        version, self._copied_version = self._copied_version, None
        weight: Tensor = self.innermost().weight
        if version is not None and weight._version != version:
            raise ConfigError(
                f"s2ft: the base weight {tuple(weight.shape)} of a copied model was written since it was copied, and "
                "update='inplace' trains a change inside of this weight, which averaging (AveragedModel) would leave "
                "there; expected base weights as they were. Average models with update='delta', or write base weights "
                "with load_state_dict."
            )


def require_float_matrix(base: nn.Module, backend: Any) -> None:
    """Refuse a layer whose weight cannot hold a change that trains in place.

    Args:
        base: the layer.
        backend: how its weight is reached if it is quantised, else None.
    Raises:
        ConfigError: for weights that are quantised or of low rank.
    """
    if backend is not None or isinstance(base, LowRank):
        kind = "low rank" if isinstance(base, LowRank) else "quantized weights"
        raise ConfigError(
            f"S2FTConfig: update='inplace' does not go with {kind} of {type(base).__name__}; expected a "
            "floating-point matrix. Use update='delta'."
        )


def _show_base(layer: nn.Module, *_: Any) -> None:
    """Take a change in place out of the weight; the next forward pass writes it again."""
    assert isinstance(layer, InPlaceLinear), "registered by one"
    if not layer.merged and layer._written:
        layer.write(())


def _trust_base(layer: nn.Module, *_: Any) -> None:
    """Take note that the base weight is about to be read from a state."""
    assert isinstance(layer, InPlaceLinear), "registered by one"
    layer._copied_version = None
