"""The tuner: puts S2FT layers into a model when PEFT asks for it, and serves several adapters in one batch."""

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, check_target_module_exists
from peft.tuners.tuners_utils import _maybe_include_all_linear_layers as expand_all_linear
from peft.utils import AuxiliaryTrainingWrapper, get_quantization_kwargs
from torch import Tensor, nn

from featherweight.errors import LISTED, ConfigError, did_you_mean
from featherweight.methods.low_rank_model import low_rank_modules, record_in_config
from featherweight.methods.s2ft.channel_selection import by_channel, choose_channels
from featherweight.methods.s2ft.config import S2FTConfig
from featherweight.methods.s2ft.fingerprint import base_fingerprint, require_same_base, weight_of
from featherweight.methods.s2ft.fuse import fuse
from featherweight.methods.s2ft.in_place import InPlaceLinear, require_float_matrix
from featherweight.methods.s2ft.layer import BASE, Linear, S2FTLayer, s2ft_layers
from featherweight.methods.s2ft.module_map import TARGETS, default_targets
from featherweight.methods.s2ft.quantized_base import backend_of
from featherweight.methods.s2ft.switch import merged_adapters, require_mergeable
from featherweight.methods.s2ft.targets import Target, find_targets
from featherweight.methods.s2ft.whole_tensors import let_heads_follow
from featherweight.nn.low_rank_linear import LowRank


class S2FTModel(BaseTuner):
    """A model with S2FT layers; made by ``peft.get_peft_model(model, fw.S2FTConfig(...))``."""

    prefix: str = "s2ft_"
    tuner_layer_cls = S2FTLayer
    target_module_mapping = {kind: targets.pattern for kind, targets in TARGETS.items()}

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Put an adapter into the model; PEFT calls it. The user's configuration object is not changed."""
        self.peft_config[adapter_name] = copy.copy(self.peft_config[adapter_name])
        super().inject_adapter(model, adapter_name, *args, **kwargs)

    def _prepare_adapter_config(self, peft_config: S2FTConfig, model_config: Mapping[str, Any]) -> S2FTConfig:
        return peft_config  # done together with the choice of channels, which `select` makes without a tuner

    def _prepare_model(self, peft_config: S2FTConfig, model: nn.Module) -> None:
        """Choose the channels of the whole model before the first layer is replaced."""
        is_all = peft_config.target_modules == "all-linear"
        targets = prepared_targets(model, peft_config)
        wrapped = _present_layers(model)
        if peft_config.update == "inplace":  # all or none
            subclass = get_quantization_kwargs(model).get("get_apply_tensor_subclass")
            for target in targets.values():
                require_float_matrix(target.module, backend_of(target.module, subclass))

        def weight_by_name(name: str) -> Tensor:
            return base_weight(targets[name], wrapped.get(name))

        found = _fingerprint(targets, weight_by_name)
        if peft_config.selection == "stored":
            require_same_base(peft_config.base_fingerprint, found, "S2FTConfig")
        chosen = choose_channels(
            targets,
            peft_config,
            lambda name: by_channel(weight_by_name(name), targets[name].axis),
        )
        if peft_config.selection != "stored":
            peft_config.base_fingerprint = found
            peft_config.module_channels = {name: len(indices) for name, indices in chosen.items()}
            if is_all:
                # A reader of the file would take the default axis of each name.
                peft_config.axis_pattern = {
                    **{rf"{name}": target.axis for name, target in targets.items()},
                    **peft_config.axis_pattern,
                }
        self._chosen = {name: (target, chosen[name]) for name, target in targets.items()}

    def _create_and_replace(
        self,
        peft_config: S2FTConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        **kwargs: Any,
    ) -> None:
        place, indices = self._chosen[current_key]
        if not len(indices):
            return
        if isinstance(target, Linear):
            if peft_config.update == "inplace":
                InPlaceLinear.take_over(target)
            target.update_layer(adapter_name, place, indices, peft_config)
            return
        if isinstance(target, BaseTunerLayer):
            raise ConfigError(
                f"S2FTConfig: target_modules select '{current_key}', which another method wraps; expected a plain "
                "layer. Unload the other adapter first."
            )
        kind = InPlaceLinear if peft_config.update == "inplace" else Linear
        layer = kind(target, adapter_name, place, indices, peft_config, **get_quantization_kwargs(self.model))
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)

    def set_scale(self, adapter_name: str, scale: float) -> None:
        """Set the factor of an adapter's change in all layers."""
        for layer in s2ft_layers(self.model).values():
            layer.set_scale(adapter_name, scale)

    def add_weighted_adapter(
        self,
        adapters: Sequence[str],
        weights: Sequence[float],
        adapter_name: str,
        combination_type: Literal["linear", "ties", "dare_linear", "dare_ties", "magnitude_prune"] = "linear",
        density: float | None = None,
        majority_sign_method: Literal["total", "frequency"] = "total",
    ) -> None:
        """Add an adapter made from others of this model; see `featherweight.methods.s2ft.fuse`."""
        fuse(
            *(self, adapters, weights),
            name=adapter_name,
            combination_type=combination_type,
            density=density,
            majority_sign_method=majority_sign_method,
        )

    def merge_adapter(self, adapter_names: list[str] | None = None, safe_merge: bool = False) -> None:
        """Merge adapters, as PEFT does; saved modules are then those of the merged adapters.

        Raises:
            ConfigError: if two of them have a head of their own.
            CheckpointError: if one is damaged; nothing is merged then.
            NumericsError: if one holds NaN or infinite numbers; nothing is merged then.
        """
        require_mergeable(self.model, [*self._merged(), *(adapter_names or self.active_adapters)], "merge")
        super().merge_adapter(adapter_names=adapter_names, safe_merge=safe_merge)
        let_heads_follow(self.model, self._merged())

    def unmerge_adapter(self) -> None:
        """Bring the base back, as PEFT does; saved modules are then those of the active adapter."""
        super().unmerge_adapter()
        let_heads_follow(self.model, self.active_adapters)

    def disable_adapter_layers(self) -> None:
        """Switch adapters off, as PEFT does; merged ones are taken out at once, not in the next forward pass."""
        if self._merged():
            for layer in s2ft_layers(self.model).values():
                layer.unmerge()
            let_heads_follow(self.model, self.active_adapters)
        super().disable_adapter_layers()

    def _merged(self) -> list[str]:
        return merged_adapters(s2ft_layers(self.model).values())

    def _check_new_adapter_config(self, config: Any) -> None:
        biased = [name for name, one in self.peft_config.items() if getattr(one, "bias", "none") != "none"]
        if biased and len(self.peft_config) > 1:
            raise ConfigError(
                f"S2FTConfig: bias={self.peft_config[biased[0]].bias!r} of adapter={biased[0]!r} trains the biases of "
                "the base itself, which all adapters of a model share; expected bias='none' beside other adapters. "
                "Save it by itself; fw.s2ft.fuse_adapters adds up files."
            )
        super()._check_new_adapter_config(config)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        if isinstance(new_module, LowRank):
            setattr(parent, child_name, new_module)  # PEFT would give it the weight that it only computes
        else:
            super()._replace_module(parent, child_name, new_module, child)

    def _unload_and_optionally_merge(self, *args: Any, **kwargs: Any) -> nn.Module:
        layers = list(s2ft_layers(self.model).values())
        merge = kwargs.get("merge", args[0] if args else True)
        if merge:
            names = list(kwargs.get("adapter_names") or self.active_adapters)
            require_mergeable(self.model, [*self._merged(), *names], "merge")
            let_heads_follow(self.model, [*self._merged(), *names])
        else:
            for layer in layers:
                layer.unmerge()
            let_heads_follow(self.model, self.active_adapters)
        for layer in layers:
            layer.store_by_output()
        model = super()._unload_and_optionally_merge(*args, **kwargs)
        record_in_config(model)  # layers of low rank have become ordinary ones, or are themselves again
        return model

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        adapter_names = kwargs.pop("adapter_names", None)
        if adapter_names is None:
            yield
            return
        if self.training:
            raise ValueError(
                "s2ft: adapter_names were given in training mode; expected evaluation mode. Call model.eval(), "
                "or train one adapter at a time with set_adapter."
            )
        if not isinstance(adapter_names, list | tuple):
            raise TypeError(
                f"s2ft: adapter_names={adapter_names!r} are no list; expected one name for each row. Write [name] "
                "* rows."
            )
        known = {name for layer in s2ft_layers(self.model).values() for name in layer.s2ft_delta}
        unknown = sorted({name for name in adapter_names if name != BASE} - known)
        if unknown:
            raise ValueError(
                f"s2ft: adapter_names={unknown} are no adapters of this model; expected some of {sorted(known)} or "
                f"'{BASE}'. {did_you_mean(unknown[0], known, otherwise=LISTED)}"
            )
        handles = self._name_adapters(list(adapter_names), kwargs.get("num_beams"))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _name_adapters(self, adapter_names: list[str], num_beams: Any) -> list[Any]:
        """Let every layer know the adapter of each row; beams of a row stand side by side."""
        beams = num_beams if isinstance(num_beams, int) else 1
        get_encoder = getattr(self.model, "get_encoder", None)
        is_encoder_decoder = getattr(getattr(self.model, "config", None), "is_encoder_decoder", False)
        # An encoder sees each row once, before the beams part.
        once = set(get_encoder().modules()) if get_encoder is not None and is_encoder_decoder else set()
        repeated = [name for name in adapter_names for _ in range(beams)]
        return [
            module.register_forward_pre_hook(
                partial(_give_names, names=adapter_names if module in once else repeated), with_kwargs=True
            )
            for module in self.modules()
            if isinstance(module, S2FTLayer | AuxiliaryTrainingWrapper)
        ]


def prepared_targets(model: nn.Module, config: S2FTConfig) -> dict[str, Target]:
    """Complete the target modules of a configuration for a model and return them.

    Args:
        model: looked at through tuners that are there already.
        config: its `target_modules` are filled in.
    Raises:
        ConfigError: if there are no defaults for the architecture, or the modules do not suit.
    """
    model_config = BaseTuner.get_model_config(model)
    if config.target_modules is None:
        pattern = default_targets(model_config.get("model_type")).pattern
        config.target_modules = pattern
        if config.layers_to_transform is not None:
            # PEFT looks at the number of a layer only for modules that are listed.
            config.target_modules = _in_layers(model, pattern, config)  # type: ignore[assignment]
    elif config.target_modules == "all-linear":
        config._all_linear = True
        expand_all_linear(config, model)
        _take_low_rank_layers_whole(config, model)
    return find_targets(model, config, lambda name: _is_selected(config, name), model_config)


def _take_low_rank_layers_whole(config: S2FTConfig, model: nn.Module) -> None:
    """Let all-linear mean layers of low rank, not the factors that PEFT finds inside them."""
    cut = low_rank_modules(model)
    if cut:
        names = {name for name in config.target_modules or () if name.rpartition(".")[0] not in cut}
        config.target_modules = names | set(cut)  # type: ignore[assignment]


def _is_selected(config: S2FTConfig, name: str) -> bool:
    """Tell whether PEFT takes a module: its answer is a truth, a match, or an object that says "excluded"."""
    answer = check_target_module_exists(config, name)
    return answer is True or isinstance(answer, re.Match)


def _in_layers(model: nn.Module, pattern: str, config: S2FTConfig) -> set[str]:
    """Return the full names of the modules that a pattern selects in the layers of a configuration."""
    listed = copy.copy(config)
    found = set()
    for name, _ in model.named_modules():
        if re.fullmatch(pattern, name):
            # The end of a name, not the whole of it, which PEFT would take without a look at its layer.
            listed.target_modules = {name.rpartition(".")[2]}  # type: ignore[assignment]
            if _is_selected(listed, name):
                found.add(name)
    return found


def _give_names(module: nn.Module, args: Any, kwargs: dict[str, Any], names: list[str]) -> Any:
    kwargs["adapter_names"] = names
    return args, kwargs


def _present_layers(model: nn.Module) -> dict[str, S2FTLayer]:
    return {name: module for name, module in model.named_modules() if isinstance(module, S2FTLayer)}


def base_weight(target: Target, layer: S2FTLayer | None) -> Tensor:
    """Return the (out_features, in_features) weight of a target without any change, dequantised.

    Args:
        target: the module.
        layer: the S2FT layer around it, if there is one; what is merged stays merged, and the result is then a copy.
    """
    if layer is not None:
        layer.write(())
    # While a change is merged into a layer of low rank, another layer stands in its place.
    weight = weight_of(target.module if layer is None else layer.get_base_layer())
    if layer is not None and layer.merged:
        weight = weight.clone()
        layer.write(layer.merged_adapters)
    return weight


def _fingerprint(targets: Mapping[str, Target], weight_of: Any) -> dict[str, list[float]] | None:
    """Return the base's fingerprint, or None where there are no numbers to take it from without dequantising."""
    plain = {name: weight_of(name) for name, target in targets.items() if _has_numbers(target.module)}
    return base_fingerprint(plain) if plain else None


def _has_numbers(module: nn.Module) -> bool:
    if isinstance(module, LowRank):
        return next(module.parameters()).device.type != "meta"
    weight: Any = getattr(module, "weight", None)
    return type(weight) in (nn.Parameter, Tensor) and weight.is_floating_point() and weight.device.type != "meta"
