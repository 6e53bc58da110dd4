"""Which layers of a model run in regions, and the proof that they compute the same.

`MsT(tokenwise=True)` calls `apply_chunked_layers`; `featherweight.methods.chunked_layer` runs the layers.
"""

from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from featherweight.errors import ConfigError
from featherweight.methods.chunked_layer import LayerSettings, NormSettings, layer_forward, norm_forward
from featherweight.methods.forward_patch import patch_forward, settings_of
from featherweight.methods.fused_head import find_causal_model
from featherweight.methods.layer_structure import closing_norms, decoder_layers, find_layer, recorded_in_layers
from featherweight.methods.probe import difference, undisturbed
from featherweight.nn.chunk_size import ChunkSize

# A chunk size that leaves every input whole.
_WHOLE = 2**62


def apply_chunked_layers(
    model: nn.Module, chunk_size: ChunkSize, accum_dtype: torch.dtype | None, changed: list[nn.Module]
) -> list[list[str | float | None]]:
    """Let the layers of a model run in regions, and the norm behind them in chunks.

    Args:
        model: with the layers of transformers.
        chunk_size: tokens at once.
        accum_dtype: in which gradients of parameters are summed over chunks; None takes float32 for 16-bit ones.
        changed: filled with the modules that have been changed, also when an error is raised.
    Returns:
        Rows of a report: module, class, what happens.
    Raises:
        ConfigError: if a layer cannot be cut, or gives other numbers than before.
    """
    layers = list(decoder_layers(model))
    if not layers:
        _refuse(model, "it has no decoder layers of transformers")
    if records := recorded_in_layers(model):
        _refuse(model, f"it collects {', '.join(sorted(records))} in its layers, which would come once per chunk")
    rows: list[list[str | float | None]] = []
    for name, layer in layers:
        structure = find_layer(layer)
        if isinstance(structure, str):
            _refuse(model, f"layer '{name}' has {structure}")
        settings = LayerSettings(structure, chunk_size, accum_dtype)
        patch_forward(layer, layer_forward, settings, method="MsT", name=name)
        changed.append(layer)
        rows.append([name, type(layer).__name__, f"in two chunked regions ({structure.rule.output})"])
    for name, norm in closing_norms(model, [layer for _, layer in layers]):
        patch_forward(norm, norm_forward, NormSettings(chunk_size, accum_dtype), method="MsT", name=name)
        changed.append(norm)
        rows.append([name, type(norm).__name__, "in chunks"])
    if (reason := _mismatch(model, changed)) is not None:
        _refuse(model, reason)
    return rows


def _refuse(model: nn.Module, reason: str) -> NoReturn:
    raise ConfigError(
        f"MsT: tokenwise=True does not fit {type(model).__name__}: {reason}; expected layers that treat each token for "
        "itself but for one attention. Use tokenwise=False."
    )


def _mismatch(model: nn.Module, changed: list[nn.Module]) -> str | None:
    """Compare six tokens both ways, and the gradients of their embeddings; return why ours are wrong, or None."""
    causal = find_causal_model(model)
    owner: Any = causal[1] if causal else model
    base = getattr(owner, "base_model", owner)
    weight = next(base.parameters())
    if weight.device.type == "meta" or isinstance(weight, FakeTensor) or not hasattr(base, "get_input_embeddings"):
        return None
    try:
        with torch.enable_grad(), undisturbed(base):
            found, expected = (_probe(base, changed, chunk_size) for chunk_size in (4, _WHOLE))
    except ConfigError:
        raise
    except Exception as error:
        return f"its layers do not run in chunks ({type(error).__name__}: {str(error)[:120]})"
    tolerance = 1e-4 if weight.dtype.itemsize >= 4 else 4e-2
    for what, ours, plain in zip(("tokens", "gradients"), found, expected, strict=True):
        if (distance := difference(ours, plain, tolerance=tolerance)) is not None:
            return f"{what} come out differently in chunks (by {distance:.1e})"
    return None


def _probe(base: Any, changed: list[nn.Module], chunk_size: int) -> tuple[Tensor, Tensor]:
    """Return what two rows of six made-up tokens become, and the gradient of their embeddings."""
    settings = [settings_of(module) for module in changed]
    given = [one.chunk_size for one in settings]
    weight = base.get_input_embeddings().weight
    with torch.no_grad():
        # Not from the global generator: applying a method must not change what a seed gives.
        ids = torch.arange(12, device=weight.device).view(2, 6) % weight.shape[0]
        embedded = base.get_input_embeddings()(ids)
    embedded.requires_grad_()
    try:
        for one in settings:
            one.chunk_size = chunk_size
        output = base(inputs_embeds=embedded, use_cache=False).last_hidden_state
    finally:
        for one, size in zip(settings, given, strict=True):
            one.chunk_size = size
    upstream = torch.linspace(-3, 3, output.numel(), device=output.device).sin().view_as(output).to(output.dtype)
    return output.detach(), torch.autograd.grad(output, embedded, upstream)[0]
