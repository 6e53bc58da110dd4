"""Mini-Sequence Transformer: a causal language model that trains on long sequences, with the same numbers.

`MsT` replaces the `forward` of each feed-forward layer by one in chunks, and lets a model that is given labels compute
its loss without logits. Class, parameters, their names, `generate` and saving stay as they are.
Source: arXiv 2407.15892. Differs from the official code: any architecture whose parts are known instead of Llama alone,
the module objects stay, no checkpointing is forced, and no token is dropped from the loss.
"""

import types
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from featherweight.errors import ConfigError
from featherweight.methods.chunked_layer import LayerSettings, NormSettings
from featherweight.methods.chunked_layer_check import apply_chunked_layers
from featherweight.methods.forward_patch import (
    is_patched,
    original_forward,
    patch_forward,
    require_outermost,
    settings_of,
    unpatch_forward,
)
from featherweight.methods.fused_head import HeadSettings, causal_forward, find_causal_model, head_settings
from featherweight.methods.layer_checkpoint import checkpoint_layers, restore_layers
from featherweight.methods.method import Method
from featherweight.methods.mlp_structure import MlpStructure, find_structure, mlp_structures
from featherweight.methods.options import MsTOptions, Tokens
from featherweight.methods.probe import difference
from featherweight.nn.chunk_size import mlp_chunk_size
from featherweight.nn.chunked import chunk
from featherweight.nn.chunked_mlp import feed_forward
from featherweight.ownership import Part, refuse_owned
from featherweight.report import Report


class MsT(MsTOptions, Method):
    """Options of the Mini-Sequence Transformer; ``fw.apply(model, fw.MsT())`` applies it.

    Example:
        >>> import featherweight as fw
        >>> from featherweight.models import load_model
        >>> model = load_model("tiny")
        >>> tokens = torch.arange(2000).view(1, -1) % 250
        >>> plain = model(tokens, labels=tokens).loss
        >>> _ = fw.apply(model.train(), fw.MsT())
        >>> output = model(tokens, labels=tokens)
        >>> torch.allclose(output.loss, plain), output.logits
        (True, None)
    """

    def apply(self, model: nn.Module, calibration: Any = None) -> Report:
        """Change a model in place; see `fw.apply`.

        Raises:
            ConfigError: if nothing in the model can be changed, the method is applied already, or `tokenwise` does not
                fit the model.
        """
        report = Report("Mini-Sequence Transformer")
        rows: list[list[str | float | None]] = []
        changed: list[nn.Module] = []
        try:
            if self.tokenwise:
                rows += apply_chunked_layers(model, self.chunk_size, self._accum_dtype, changed)
            if self.mlp:
                self._apply_mlp(model, rows, changed)
            if self.head:
                self._apply_head(model, rows, changed)
            if not changed and not self.checkpoint:
                raise ConfigError(
                    f"MsT: model={type(model).__name__} has no part that can be changed ({_reasons(rows)}); expected "
                    f"feed-forward layers with the parts of {', '.join(mlp_structures.names())}, or a causal language "
                    "model of transformers. Register the names of its parts in featherweight.methods.mlp_structure."
                )
            if self.checkpoint:
                count = checkpoint_layers(model, self.checkpoint)
                rows.append(["", "layers", f"{count} checkpointed ({self.checkpoint})"])
        except BaseException:
            for module in changed:
                unpatch_forward(module)
            raise
        report.add_table("Modules", ["module", "class", "what happens"], rows)
        return report

    def remove(self, model: nn.Module) -> None:
        """Undo `apply`; see `fw.remove`.

        Raises:
            ConfigError: if something else was wrapped around a changed module since.
        """
        patched = [module for module in model.modules() if is_patched(module)]
        ours = [module for module in patched if isinstance(settings_of(module), _SETTINGS)]
        for module in ours:  # all or none
            require_outermost(module)
        for module in ours:
            unpatch_forward(module)
        restore_layers(model)

    @property
    def _accum_dtype(self) -> torch.dtype | None:
        return None if self.accum_dtype == "auto" else getattr(torch, self.accum_dtype)

    def _apply_mlp(self, model: nn.Module, rows: list[Any], changed: list[nn.Module]) -> None:
        judged: dict[type[nn.Module], str | None] = {}
        for name, module in list(model.named_modules()):
            found = find_structure(module)
            if found is None:
                continue
            refuse_owned(Part.FORWARD, module, "MsT", name=name)
            rule, structure = found
            kind = type(module)
            if kind not in judged:
                judged[kind] = _mlp_mismatch(module, structure)
            if judged[kind] is None:
                settings = _MlpSettings(structure, self.chunk_size, self.save == "products", self._accum_dtype)
                patch_forward(module, _mlp_forward, settings, method="MsT", name=name)
                changed.append(module)
            rows.append([name, kind.__name__, judged[kind] or f"in chunks ({rule})"])

    def _apply_head(self, model: nn.Module, rows: list[Any], changed: list[nn.Module]) -> None:
        causal = find_causal_model(model)
        if causal is None:
            rows.append(["", type(model).__name__, "left alone: no causal language model of transformers"])
            return
        name, owner = causal
        settings, reason = head_settings(
            owner, chunk_size=self.head_chunk_size, in_eval=self.head_in_eval, accum_dtype=self._accum_dtype
        )
        if reason is None:
            patch_forward(owner, causal_forward, settings, method="MsT", name=name)
            changed.append(owner)
        rows.append([name, type(owner).__name__, f"left alone: {reason}" if reason else "loss in chunks"])


@dataclass(frozen=True)
class _MlpSettings:
    structure: MlpStructure
    chunk_size: Tokens
    keeps_products: bool
    accum_dtype: torch.dtype | None


_SETTINGS = (_MlpSettings, HeadSettings, LayerSettings, NormSettings)


def _mlp_forward(module: nn.Module, x: Tensor) -> Tensor:
    """Run a feed-forward layer in chunks, or as it was if the input is short."""
    settings: _MlpSettings = settings_of(module)
    tokens = x.numel() // x.shape[-1]
    size = settings.chunk_size
    if size == "auto":
        size = mlp_chunk_size(tokens, settings.structure.width(module), x.device)
    if size >= tokens:
        return original_forward(module)(x)
    return _in_chunks(module, settings.structure, x, size, settings.keeps_products, settings.accum_dtype)


def _in_chunks(
    module: nn.Module,
    structure: MlpStructure,
    x: Tensor,
    chunk_size: int,
    keeps_products: bool = False,
    accum_dtype: torch.dtype | None = None,
) -> Tensor:
    linears = structure.linears(module)
    if linears is None:
        # Adapters, quantised weights, hooks: the layer itself runs, chunk by chunk.
        rows = x.reshape(1, -1, x.shape[-1])
        original = original_forward(module) if is_patched(module) else module.forward
        # A method of the module, so that its parameters are found.
        of_module = types.MethodType(lambda _, part: original(part), module)
        result = chunk(of_module, rows, dim=1, chunk_size=chunk_size, accum_dtype=accum_dtype)
        return result.view(*x.shape[:-1], -1)
    *first, last = linears
    result = feed_forward(
        x,
        first,
        structure.combine(module),
        last,
        chunk_size=chunk_size,
        accum_dtype=accum_dtype,
        keeps_products=keeps_products,
    )
    return structure.drop(module, result)


def _mlp_mismatch(module: nn.Module, structure: MlpStructure) -> str | None:
    """Compare both ways on three tokens and return why the chunked one is wrong for this class, or None."""
    weight = next(module.parameters())
    if weight.device.type == "meta" or isinstance(weight, FakeTensor) or structure.linears(module) is None:
        return None  # nothing to compare with, or the layer's own forward runs anyway
    width = next(iter(structure.linears(module) or ()))[0].shape[1]
    # Not from the global generator: applying a method must not change what a seed gives.
    x = torch.linspace(-3, 3, 3 * width, dtype=torch.float32).sin().view(1, 3, width).to(weight)
    was_training = module.training
    try:
        module.eval()
        with torch.no_grad():
            expected, found = module(x), _in_chunks(module, structure, x, chunk_size=2)
    finally:
        module.train(was_training)
    tolerance = 1e-4 if weight.dtype.itemsize >= 4 else 2e-2
    error = difference(found, expected, tolerance=tolerance)
    return None if error is None else f"left alone: three tokens come out differently in chunks (by {error:.1e})"


def _reasons(rows: list[Any]) -> str:
    return "; ".join(str(row[-1]) for row in rows) or "nothing looks like a feed-forward layer"
