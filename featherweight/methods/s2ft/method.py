"""S2FT in a recipe: ``methods: [s2ft]`` freezes the model but for some channels, and the run folder gets an adapter."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from featherweight.methods.low_rank_model import record_in_config
from featherweight.methods.method import Method
from featherweight.methods.options import S2FTOptions
from featherweight.methods.peft_adapter import head_settings, head_tensors, require_no_adapter, train_head
from featherweight.methods.s2ft.adapter import Adapter
from featherweight.methods.s2ft.config import S2FTConfig
from featherweight.methods.s2ft.layer import s2ft_layers
from featherweight.methods.s2ft.model import S2FTModel
from featherweight.methods.sealed_folder import RECORD
from featherweight.nn.module_tree import replace_module
from featherweight.report import Report

_TRAINED_BEFORE = "_featherweight_trained_before_s2ft"


class S2FT(S2FTOptions, Method):
    """Options of structured sparse fine-tuning in a recipe; fields that `fw.S2FTConfig` has mean the same."""

    def apply(self, model: nn.Module, calibration: Any = None) -> Report:
        """Freeze a model in place but for some channels; see `fw.apply`.

        Raises:
            ConfigError: if the options do not fit the model, or it has an adapter already.
        """
        require_no_adapter(model, "S2FT")
        trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        config = self.peft_config()
        config.base_model_name_or_path = vars(model).get("name_or_path") or getattr(model, "name_or_path", None)
        S2FTModel(model, {"default": config}, "default")
        train_head(model)
        setattr(model, _TRAINED_BEFORE, trained)
        layers = s2ft_layers(model)
        report = Report("S2FT")
        count = sum(one.numel() for one in model.parameters() if one.requires_grad)
        report.add_facts({"trained parameters": count, "modules": len(layers)})
        rows = [
            [name, layer.s2ft_axis["default"], *layer.s2ft_delta["default"].shape] for name, layer in layers.items()
        ]
        report.add_table("Modules", ["module", "axis", "channels", "features"], rows)
        return report

    def remove(self, model: nn.Module) -> None:
        """Undo `apply`; what was trained is given up. See `fw.remove`."""
        for name, layer in s2ft_layers(model).items():
            layer.unmerge()
            layer.store_by_output()
            replace_module(model, name, layer.get_base_layer())
        trained = set(getattr(model, _TRAINED_BEFORE))
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in trained)
        delattr(model, _TRAINED_BEFORE)
        del model.peft_config

    @contextmanager
    def saving(self, model: nn.Module, folder: Path) -> Iterator[None]:
        """Write the adapter beside `folder`; in the block the model is an ordinary one with the change merged."""
        adapter = Adapter.of_model(model)
        adapter = replace(
            adapter, config={**adapter.config, **head_settings(model)}, extra={**adapter.extra, **head_tensors(model)}
        )
        adapter.save(folder.parent / "adapter")
        layers = s2ft_layers(model)
        record = getattr(getattr(model, "config", None), RECORD, None)
        for name, layer in layers.items():
            layer.switch(["default"])
            replace_module(model, name, layer.get_base_layer())
        record_in_config(model)
        try:
            yield
        finally:
            if record is not None:
                setattr(model.config, RECORD, record)
            for name, layer in layers.items():
                assert isinstance(layer, nn.Module), "layers are modules"
                replace_module(model, name, layer)
                layer.unmerge()

    def peft_config(self) -> S2FTConfig:
        """Return the options as PEFT takes them."""
        return S2FTConfig(s2ft_dropout=self.dropout, **self.model_dump(exclude={"dropout"}))
