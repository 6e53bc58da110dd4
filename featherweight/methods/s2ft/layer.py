"""The layer that PEFT puts in the place of a linear layer: the frozen layer, and changes of some of its channels.

Shapes: B rows of a batch, M out_features, N in_features, S selected channels of an adapter, K the other axis.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn
from torch.nn import functional as F

from featherweight import ownership
from featherweight.errors import CheckpointError, ConfigError
from featherweight.methods.s2ft.base_slices import BaseSlices, ChannelChange, restore_, write_
from featherweight.methods.s2ft.config import S2FTConfig
from featherweight.methods.s2ft.quantized_base import LayerBefore, WeightBefore, backend_of
from featherweight.methods.s2ft.soundness import require_sound
from featherweight.methods.s2ft.targets import Target, is_conv1d, linear_features
from featherweight.nn.channel_delta import Axis, add_delta, changed_linear
from featherweight.nn.low_rank_linear import LowRank, matrix_of
from featherweight.ownership import Part

BASE = "__base__"
"""Name of the model without an adapter among `adapter_names`."""


class S2FTLayer(BaseTunerLayer):
    """What every S2FT layer holds: for each adapter a change, its channels, axis and scaling."""

    adapter_layer_names = ("s2ft_delta",)
    other_param_names = ("s2ft_indices", "s2ft_scaling", "s2ft_axis", "s2ft_update", "s2ft_dropout")

    def __init__(self, base_layer: nn.Module, **kwargs: Any) -> None:
        self.base_layer = base_layer
        self.s2ft_delta = nn.ParameterDict({})
        self.s2ft_indices = BufferDict(persistent=True)
        self.s2ft_scaling: dict[str, float] = {}
        self.s2ft_axis: dict[str, Axis] = {}
        self.s2ft_update: dict[str, str] = {}
        self.s2ft_dropout: dict[str, float] = {}
        self._get_apply_tensor_subclass = kwargs.get("get_apply_tensor_subclass")
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        sizes = linear_features(base_layer)
        assert sizes is not None, "targets are linear layers"
        self.in_features, self.out_features = sizes
        self.fan_in_fan_out = is_conv1d(base_layer)
        # Adapters whose channels are still to be read from a file.
        self._pending: set[str] = set()
        # How to take out what is written into the weight: its slices, or a quantised or low-rank layer as it was.
        self._slices: list[BaseSlices] = []
        self._before: WeightBefore | LayerBefore | None = None
        self._layout_hook: Any = None

    def update_layer(
        self, adapter_name: str, target: Target, indices: Tensor, config: S2FTConfig, inference_mode: bool = False
    ) -> None:
        """Add an adapter, or replace one of the same name.

        Raises:
            ConfigError: if the configuration does not suit this layer.
        """
        weight = self._like()
        dtype = torch.float32
        if weight.is_floating_point() and self.quantization_backend is None:
            # Updates are far smaller than the steps of 16-bit numbers.
            dtype = torch.promote_types(dtype, weight.dtype)
        delta = torch.zeros(len(indices), target.other, dtype=dtype, device=weight.device)
        if not config.init_weights:
            nn.init.normal_(delta, std=0.02)
        self.s2ft_delta[adapter_name] = nn.Parameter(delta)
        self.s2ft_indices[adapter_name] = indices.to(device=weight.device, dtype=torch.int32)
        self.s2ft_scaling[adapter_name] = 1.0
        self.s2ft_axis[adapter_name] = target.axis
        self.s2ft_update[adapter_name] = config.update
        self.s2ft_dropout[adapter_name] = config.s2ft_dropout
        if config.selection == "stored":
            self._pending.add(adapter_name)
        if config.layout == "channel_major" and target.axis == "input":
            self.store_by_channel()
        self.set_adapter(self.active_adapters, inference_mode=inference_mode)

    @property
    def quantization_backend(self) -> Any:
        """How the weight is reached if it is quantised, else None; asked anew, as methods change layers in place."""
        return backend_of(self.get_base_layer(), self._get_apply_tensor_subclass)

    def innermost(self) -> Any:
        """Return the frozen layer itself."""
        return self.get_base_layer()

    def present(self) -> list[str]:
        """Return the active adapters that change this layer."""
        return [name for name in self.active_adapters if name in self.s2ft_delta]

    def _like(self) -> Tensor:
        """Return a parameter that has the base's device and dtype."""
        base = self.get_base_layer()
        return next(base.parameters()) if isinstance(base, LowRank) else self.weight

    # ---- the weight ----------------------------------------------------------------------------------------------

    def change(self, adapter_name: str) -> ChannelChange:
        """Return the change of an adapter."""
        self._require_indices(adapter_name)
        return ChannelChange(
            self.s2ft_axis[adapter_name],
            self.s2ft_indices[adapter_name],
            self.s2ft_delta[adapter_name],
            self.s2ft_scaling[adapter_name],
        )

    def get_delta_weight(self, adapter: str) -> Tensor:
        """Return the change of an adapter as a dense matrix of the weight's shape."""
        change = self.change(adapter)
        dense = change.delta.detach().new_zeros((self.out_features, self.in_features))
        write_(dense, [change])
        return dense.t() if self.fan_in_fan_out else dense

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Say that each change is a low-rank matrix; `featherweight.methods.s2ft.export_lora` writes it exactly."""
        return True

    def set_scale(self, adapter: str, scale: float) -> None:
        """Set the factor of an adapter's change; adapters that this layer does not have are passed over."""
        if adapter in self.s2ft_scaling:
            self.s2ft_scaling[adapter] = scale
            if adapter in self.merged_adapters:
                self.write(self.merged_adapters)

    def scale_layer(self, scale: float) -> None:
        """Multiply the factors of the active adapters."""
        for name in self.active_adapters:
            if name in self.s2ft_scaling:
                self.set_scale(name, self.s2ft_scaling[name] * scale)

    def write(self, adapter_names: Sequence[str]) -> None:
        """Let the weight hold base plus the changes of exactly these adapters, from whatever it holds now.

        Cost: the selected slices, each way. A quantised weight is rounded anew as a whole, and in the place of a layer
            of low rank stands an ordinary one; the old ones are kept.
        """
        names = [name for name in adapter_names if name in self.s2ft_delta]
        self._take_out()
        if not names:
            return
        changes = [self.change(name) for name in names]
        with torch.no_grad():
            if isinstance(self.get_base_layer(), LowRank):
                self._before = LayerBefore.exchange(self)
                write_(matrix_of(self.get_base_layer()), changes)
            elif self.quantization_backend is None:
                self._slices = write_(self._matrix(), changes)
                self._claim()
            else:
                self._before = WeightBefore.of(self.get_base_layer())
                stored = self.get_base_weight().clone()
                write_(stored.t() if self.fan_in_fan_out else stored, changes)
                self.set_base_weight(stored)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Write the changes of adapters into the weight.

        Args:
            safe_merge: for PEFT; changes are always looked at first.
            adapter_names: which; None takes the active ones.
        Raises:
            CheckpointError: if channels of a change stand twice or outside; the weight is then as before.
            NumericsError: if a change holds NaN or infinite numbers; the weight is then as before.
        """
        names = [name for name in check_adapters_to_merge(self, adapter_names) or [] if name in self.s2ft_delta]
        if not names:
            return
        self.require_sound(names, "merge")
        self.merged_adapters.extend(names)
        self.write(self.merged_adapters)

    def require_sound(self, adapter_names: Sequence[str], where: str) -> None:
        """Refuse adapters of this layer that no training can have made; see `soundness.require_sound`."""
        for name in adapter_names:
            if name in self.s2ft_delta:
                shapes = {"weight": (self.out_features, self.in_features)}
                require_sound({"weight": self.change(name)}, f"{where}: adapter={name!r}", shapes)

    def unmerge(self) -> None:
        """Bring the base weight back, bit by bit."""
        self.merged_adapters.clear()
        self._take_out()

    def switch(self, adapter_names: Sequence[str]) -> None:
        """Merge exactly these adapters, whatever is merged now."""
        self.merged_adapters = [name for name in adapter_names if name in self.s2ft_delta]
        self.write(self.merged_adapters)

    def refresh(self) -> None:
        """Write adapters that train in place into the weight again; an ordinary layer has none."""

    def delete_adapter(self, adapter_name: str) -> None:
        """Remove an adapter; the weight then no longer holds it."""
        if adapter_name in self.merged_adapters:
            self.merged_adapters.remove(adapter_name)
            self.write(self.merged_adapters)
        elif adapter_name in self.s2ft_delta:
            self._take_out()
            self.write(self.merged_adapters)
        self._pending.discard(adapter_name)
        super().delete_adapter(adapter_name)

    def store_by_channel(self) -> None:
        """Store the weight by input channel, so that a slice of input channels is contiguous; shape and values stay."""
        layer = self.get_base_layer()
        is_stored = self.quantization_backend is None and not isinstance(layer, LowRank)
        if self._layout_hook is None and is_stored and not self.fan_in_fan_out:
            layer.weight.data = layer.weight.data.t().contiguous().t()
            self._layout_hook = layer.register_state_dict_post_hook(_save_contiguous)

    def store_by_output(self) -> None:
        """Undo `store_by_channel`."""
        if self._layout_hook is not None:
            self._layout_hook.remove()
            self._layout_hook = None
            layer = self.get_base_layer()
            layer.weight.data = layer.weight.data.contiguous()

    def _matrix(self) -> Tensor:
        """Return the weight as (M, N)."""
        # Not `.data`: autograd has to see that a weight which a backward pass still needs was written into.
        weight: Tensor = self.get_base_layer().weight.detach()
        return weight.t() if self.fan_in_fan_out else weight

    def _take_out(self) -> None:
        if self._before is not None:
            self._before.bring_back(self)
            self._before = None
        with torch.no_grad():
            if self._slices:
                restore_(self._matrix(), self._slices)
                ownership.release(Part.WEIGHT, self.get_base_layer().weight, self)
        self._slices = []

    def _claim(self) -> None:
        """Say that the weight holds a change, which is taken out again."""
        if self._slices:
            way_out = "Unmerge or unload the adapter first, or train it with update='delta'."
            weight = self.get_base_layer().weight
            ownership.claim(Part.WEIGHT, weight, self, words="an S2FT adapter", way_out=way_out)

    def _require_indices(self, name: str) -> None:
        if name in self._pending:
            indices = self.s2ft_indices[name]
            if indices.device.type != "meta" and len(indices) and int(indices[0]) < 0:
                raise CheckpointError(
                    f"s2ft: adapter={name!r} has no channels yet; expected those of its file. Open it with "
                    "PeftModel.from_pretrained or load_adapter; its configuration alone is not enough."
                )
            self._pending.discard(name)

    # ---- what BaseTunerLayer would do with dtypes ----------------------------------------------------------------

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        """Move an adapter to the base layer's device; unlike PEFT's own, never to a narrower dtype."""
        if adapter_name not in self.s2ft_delta:
            return
        place = device if device is not None else self._like().device
        if place is None or self.s2ft_delta[adapter_name].device.type == "meta":
            return
        self.s2ft_delta[adapter_name] = self.s2ft_delta[adapter_name].to(place)
        self.s2ft_indices[adapter_name] = self.s2ft_indices[adapter_name].to(place)


class Linear(nn.Module, S2FTLayer):
    """A frozen linear layer and changes of some of its channels; also for quantised layers and GPT-2's Conv1D."""

    def __init__(
        self,
        base_layer: nn.Module,
        adapter_name: str,
        target: Target,
        indices: Tensor,
        config: S2FTConfig,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        S2FTLayer.__init__(self, base_layer, **kwargs)
        if base_layer is not self.innermost():
            raise ConfigError(
                f"S2FTConfig: target_modules select a layer that {type(base_layer).__name__} of another method wraps; "
                "expected a plain layer. Unload the other adapter first."
            )
        self._active_adapter = adapter_name
        self.register_load_state_dict_pre_hook(_require_sound_state)
        self.update_layer(adapter_name, target, indices, config)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._claim()  # a copy has a base weight of its own

    def forward(self, x: Tensor, *args: Any, adapter_names: list[str] | None = None, **kwargs: Any) -> Tensor:
        """Return the layer's output with the changes of the active adapters, or of one adapter for each row."""
        if adapter_names is not None:
            return self._mixed_forward(x, adapter_names, *args, **kwargs)
        if self.disable_adapters and self.merged:
            self.unmerge()
        if self.disable_adapters or self.merged:
            return self._base(x, *args, **kwargs)
        return self._changed(x, self.present(), *args, **kwargs)

    def _changed(self, x: Tensor, names: list[str], *args: Any, written: bool = False, **kwargs: Any) -> Tensor:
        """Return the output with changes of adapters, in one step where there is one for it.

        Args:
            x: (..., N).
            names: of the adapters.
            written: the base weight holds the change of the one adapter already.
        """
        if len(names) == 1 and not args and not kwargs and self._is_plain(x, names[0]):
            layer, change = self.innermost(), self.change(names[0])
            return changed_linear(
                *(x, layer.weight, layer.bias, change.delta, change.indices, change.axis),
                scaling=change.scaling,
                written=written,
            )
        return self._beside(x, names, *args, **kwargs)

    def _beside(self, x: Tensor, names: Iterable[str], *args: Any, **kwargs: Any) -> Tensor:
        """Return the base's output and, added to it, the changes of adapters."""
        result = self._base(x, *args, **kwargs)
        for name in names:
            result = self._add(result, x, name)
        return result

    def _add(self, result: Tensor, x: Tensor, name: str) -> Tensor:
        change = self.change(name)
        share = self.s2ft_dropout[name]
        x = F.dropout(x, share) if share and self.training else x
        return add_delta(result, x, change.delta, change.indices, change.axis, change.scaling)

    def _base(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        result: Tensor = self.base_layer(x, *args, **kwargs)
        return result

    def _is_plain(self, x: Tensor, name: str) -> bool:
        """Tell whether the fused step may take the place of the layer's own forward."""
        layer = self.innermost()
        return (
            type(layer) is nn.Linear
            and torch.is_grad_enabled()
            and (x.requires_grad or self.s2ft_delta[name].requires_grad)
            and x.dtype == layer.weight.dtype
            and x.dim() >= 2
            and type(layer.weight) is nn.Parameter
            and not layer.weight.requires_grad
            and (layer.bias is None or not layer.bias.requires_grad)
            and not (self.training and self.s2ft_dropout[name])
            and not torch.is_autocast_enabled(x.device.type)
            and "forward" not in vars(layer)
            and not (layer._forward_hooks or layer._forward_pre_hooks)
            and not (layer._backward_hooks or layer._backward_pre_hooks)
        )

    def _mixed_forward(self, x: Tensor, adapter_names: list[str], *args: Any, **kwargs: Any) -> Tensor:
        if len(adapter_names) != len(x):
            raise ValueError(
                f"s2ft: adapter_names={len(adapter_names)} do not fit a batch of {len(x)} rows; expected one for "
                "each row."
                " Repeat names for rows that belong together."
            )
        if self.merged or self.disable_adapters:
            raise ValueError(
                f"s2ft: adapter_names={sorted(set(adapter_names))} were given while adapters are "
                f"{'merged' if self.merged else 'disabled'}; expected neither. Call unmerge_adapter() or enable "
                "them first."
            )
        result = self._base(x, *args, **kwargs)
        for name in dict.fromkeys(adapter_names):
            if name == BASE or name not in self.s2ft_delta:
                continue
            rows = [row for row, other in enumerate(adapter_names) if other == name]
            if len(rows) == rows[-1] - rows[0] + 1:
                # Neighbours are a view, which costs no copy.
                part = slice(rows[0], rows[-1] + 1)
                if not torch.is_grad_enabled():
                    self._add_(result[part], x[part], name)
                    continue
            else:
                part = torch.tensor(rows, device=x.device)  # type: ignore[assignment]
            if result.requires_grad:
                result = result.clone()
            result[part] = self._add(result[part], x[part], name)
        return result

    def _add_(self, result: Tensor, x: Tensor, name: str) -> None:
        """As `_add`, into `result`."""
        change = self.change(name)
        if change.axis == "input" and x.dtype == result.dtype and result.is_contiguous():
            scaled = (change.delta if change.scaling == 1.0 else change.delta * change.scaling).to(x.dtype)
            result.view(-1, result.shape[-1]).addmm_(x.index_select(-1, change.indices).flatten(0, -2), scaled)
        else:
            result.copy_(self._add(result, x, name))

    def __repr__(self) -> str:
        return f"s2ft.{super().__repr__()}"


def s2ft_layers(model: nn.Module) -> dict[str, S2FTLayer]:
    """Return the S2FT layers of a model by the name that the base model has for their place."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, S2FTLayer):
            # PeftModel puts "base_model.model." before the names, the tuner alone "model.".
            found[name] = module
    root = _root_prefix(model)
    return {name.removeprefix(root): layer for name, layer in found.items()}


def _root_prefix(model: nn.Module) -> str:
    from peft import PeftModel
    from peft.tuners.tuners_utils import BaseTuner

    if isinstance(model, PeftModel):
        return "base_model.model."
    return "model." if isinstance(model, BaseTuner) else ""


def _require_sound_state(layer: nn.Module, state: Mapping[str, Any], prefix: str, *_: Any) -> None:
    """Look at changes before they are read: PEFT's own loading and a checkpoint's come through here."""
    assert isinstance(layer, S2FTLayer), "registered by one"
    for name in layer.s2ft_delta:
        delta = state.get(f"{prefix}s2ft_delta.{name}")
        indices = state.get(f"{prefix}s2ft_indices.{name}")
        # Parts of a sharded tensor are looked at by whoever loads the whole.
        if delta is not None and indices is not None and type(delta).__name__ != "DTensor":
            place = prefix.removeprefix("base_model.model.").rstrip(".")
            change = ChannelChange(layer.s2ft_axis[name], indices, delta)
            require_sound({place: change}, f"s2ft: adapter={name!r}", {place: (layer.out_features, layer.in_features)})


def _save_contiguous(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    """Write the weight in the standard layout: safetensors refuses any other."""
    key = f"{prefix}weight"
    if key in state:
        state[key] = state[key].contiguous()
