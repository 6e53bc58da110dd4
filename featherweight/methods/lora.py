"""LoRA in a recipe: ``methods: [{lora: {r: 16}}]`` freezes the model and trains PEFT's own adapters beside it.

The layers, their arithmetic and their initial values are those of PEFT; here stand the choice of modules, the way back,
and what the run folder gets.
Source: Hu et al., LoRA, arXiv 2106.09685; rank-stabilised scaling: arXiv 2312.03732; DoRA: arXiv 2402.09353.
"""

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from featherweight.errors import ConfigError
from featherweight.import_hook import without_kernel_advice
from featherweight.methods.low_rank_model import low_rank_modules
from featherweight.methods.method import Method
from featherweight.methods.options import LoRAOptions
from featherweight.methods.peft_adapter import (
    PREFIX,
    head_settings,
    head_tensors,
    plain_settings,
    require_no_adapter,
    train_head,
    write_files,
)
from featherweight.nn.int8_linear import Int8Linear
from featherweight.nn.module_tree import replace_module, shared_parameters
from featherweight.quant.weight4bit import is_4bit
from featherweight.report import Report
from featherweight.selection import ALL_LINEAR, classification_head, select_modules

ADAPTER = "default"
_TRAINED_BEFORE = "_featherweight_trained_before_lora"


class LoRA(LoRAOptions, Method):
    """Options of LoRA; fields that `peft.LoraConfig` has mean the same, and biases stay frozen.

    Initial values are drawn from torch's global generator, as in PEFT; a recipe seeds it. Adapters are float32 beside
    16-bit weights, as in PEFT, because their updates are far smaller than the steps of 16-bit numbers.

    Example:
        >>> import featherweight as fw
        >>> from featherweight.models import load_model
        >>> model = load_model("tiny")
        >>> report = fw.apply(model, fw.LoRA(r=4, target_modules=["q_proj", "v_proj"]))
        >>> sum(one.numel() for one in model.parameters() if one.requires_grad) == 4 * 2 * 4 * (128 + 128)
        True
        >>> fw.remove(model, fw.LoRA())
    """

    def apply(self, model: nn.Module, calibration: Any = None) -> Report:
        """Freeze a model in place and put adapters beside its layers; see `fw.apply`.

        Raises:
            ConfigError: if no module can be changed, a selected one cannot, or the model has adapters already.
        """
        without_kernel_advice()
        from peft import inject_adapter_in_model
        from peft.tuners.tuners_utils import cast_adapter_dtype

        chosen, left = self._select(model)
        trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        config = self.peft_config()
        config.target_modules = list(chosen)
        config.base_model_name_or_path = vars(model).get("name_or_path") or getattr(model, "name_or_path", None)
        with warnings.catch_warnings(), _adapters_made_in_place(model):
            # PEFT sees by itself which layers are transposed, and says so for the first one.
            warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")
            inject_adapter_in_model(config, model, ADAPTER)
        cast_adapter_dtype(model, ADAPTER)  # as `peft.get_peft_model` does
        train_head(model)
        setattr(model, _TRAINED_BEFORE, trained)
        report = Report("LoRA")
        layers = lora_layers(model)
        count = sum(one.numel() for one in model.parameters() if one.requires_grad)
        report.add_facts({"trained parameters": count, "modules": len(layers)})
        rows: list[list[str | float | None]] = [
            [name, f"rank {self.r}", layer.in_features, layer.out_features] for name, layer in layers.items()
        ]
        rows += [[name, f"left alone: {reason}", None, None] for name, reason in left.items()]
        report.add_table("Modules", ["module", "what happens", "in_features", "out_features"], rows)
        return report

    def remove(self, model: nn.Module) -> None:
        """Undo `apply`; what was trained is given up. See `fw.remove`."""
        for name, layer in lora_layers(model).items():
            replace_module(model, name, layer.get_base_layer())
        trained = set(getattr(model, _TRAINED_BEFORE))
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in trained)
        delattr(model, _TRAINED_BEFORE)
        del model.peft_config

    @contextmanager
    def saving(self, model: nn.Module, folder: Path) -> Iterator[None]:
        """Write the adapter beside `folder`; in the block the model is an ordinary one with the change merged.

        The frozen weights are not touched: merged copies of the changed layers take their places in the block. Copies
        are rounded once, to the dtype of the weight; those of int8 layers are float.
        Cost: the changed layers' weights once more, in memory.
        """
        save_adapter(model, folder.parent / "adapter")
        layers = lora_layers(model)
        try:
            for name, layer in layers.items():
                replace_module(model, name, _merged(layer))
            yield
        finally:
            for name, layer in layers.items():
                replace_module(model, name, layer)

    def peft_config(self) -> Any:
        """Return the options as a `peft.LoraConfig`."""
        from peft import LoraConfig

        return LoraConfig(**self.model_dump(exclude={"target_modules", "exclude_modules"}))

    def _select(self, model: nn.Module) -> tuple[dict[str, nn.Module], dict[str, str]]:
        """Return the modules to change, and the reasons for those that all-linear leaves alone."""
        require_no_adapter(model, "LoRA")
        if low_rank := low_rank_modules(model):
            raise ConfigError(
                f"LoRA: module '{next(iter(low_rank))}' is of low rank, beside which PEFT puts no adapter; expected "
                "ordinary linear layers. Call fw.merge_low_rank first, or train the factors themselves."
            )
        target_modules = self.target_modules or ALL_LINEAR
        shared = shared_parameters(model)
        head = {id(one) for top in classification_head(model).values() for one in top.modules()}
        chosen, left = {}, {}
        for name, module in select_modules(model, target_modules, self.exclude_modules).items():
            reason = "is of the head, which learns whole" if id(module) in head else _mismatch(module, shared)
            if reason is None:
                chosen[name] = module
            elif target_modules == ALL_LINEAR:
                left[name] = reason
            else:
                raise ConfigError(
                    f"LoRA: target_modules={target_modules!r} select '{name}', which {reason}; expected linear layers "
                    "with weights of their own. Leave it out with exclude_modules."
                )
        if not chosen:
            reasons = "; ".join(sorted(set(left.values())))
            raise ConfigError(
                f"LoRA: model={type(model).__name__} has no layer that can have an adapter: each {reasons}; expected "
                "nn.Linear or Conv1D. Select other modules."
            )
        quantized = any(isinstance(module, Int8Linear) or is_4bit(module) for module in chosen.values())
        if self.use_dora and quantized:
            raise ConfigError(
                "LoRA: use_dora=True needs the norms of float weights, and the model has int8 or 4-bit weights; "
                "expected one of the two. Set use_dora=False or leave int8 and base4bit out."
            )
        return chosen, left


def lora_layers(model: nn.Module) -> dict[str, Any]:
    """Return PEFT's LoRA layers of a model by the name of the module whose place they took."""
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


def save_adapter(model: nn.Module, folder: Path) -> None:
    """Write the two files of an adapter, which `peft.PeftModel.from_pretrained(base, folder)` opens.

    Raises:
        CheckpointError: if the folder cannot be written.
    """
    from peft import get_peft_model_state_dict

    own = {name: one.detach() for name, one in model.named_parameters() if ".lora_" in name}
    # Without embeddings: PEFT would ask the hub whether those of the base model have another size.
    state = get_peft_model_state_dict(model, own, ADAPTER, save_embedding_layers=False)
    tensors = {f"{PREFIX}{name}": tensor.contiguous().cpu() for name, tensor in state.items()}
    config = copy.copy(vars(model)["peft_config"][ADAPTER])
    config.inference_mode = True
    kind = type(model)
    # By these two names PEFT finds the class of the base model.
    auto_mapping = {"base_model_class": kind.__name__, "parent_library": kind.__module__}
    settings = plain_settings(config.to_dict()) | {"auto_mapping": auto_mapping} | head_settings(model)
    write_files(folder, settings, tensors | head_tensors(model))


def _mismatch(module: nn.Module, shared: set[int]) -> str | None:
    """Say why PEFT cannot put an adapter beside a module, or return None."""
    from transformers.pytorch_utils import Conv1D

    if not isinstance(module, nn.Linear | Conv1D):
        return f"is a {type(module).__name__}, beside which PEFT puts no adapter"
    return "shares its weight with another module" if id(module.weight) in shared else None


@contextmanager
def _adapters_made_in_place(model: nn.Module) -> Iterator[None]:
    """Let PEFT make the adapters of fake weights where these are: torch cannot move a module of fake tensors.

    Their dtype needs no move either: it is float32 in the end, whether or not PEFT gives them 16 bits in between.
    """
    first = next(model.parameters())
    if not isinstance(first, FakeTensor):
        yield
        return
    with first.device, patch.object(nn.Module, "to", lambda module, *_, **__: module):
        yield


def _merged(layer: Any) -> nn.Module:
    """Return an ordinary layer with the change in its weight; nothing of the LoRA layer is written."""
    plain = _with_own_weight(layer.get_base_layer())
    twin = copy.copy(layer)
    twin._modules = {**layer._modules, "base_layer": plain}
    twin.merged_adapters, twin._caches = [], {}
    twin.merge(adapter_names=[ADAPTER])
    return plain


def _with_own_weight(base: Any) -> nn.Module:
    """Return a layer with a copy of the weight; the bias is shared. An int8 layer becomes a float one."""
    if isinstance(base, Int8Linear):
        plain: Any = nn.Linear(base.in_features, base.out_features, bias=False, device="meta")
        plain.bias = base.bias
        weight = base.int8_weight().dequantize(base.weight.dtype)
    else:
        plain, weight = copy.copy(base), base.weight.detach().clone()
        plain._parameters = dict(base._parameters)
        vars(plain).pop("forward", None)  # that of another method, which knows the original layer
    plain.weight = nn.Parameter(weight, requires_grad=False)
    return plain
