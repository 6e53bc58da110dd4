"""Low-rank checkpoints that others wrote, into a model here: the ranks are read from the shapes.

Known forms, by the names of the two thin matrices of a module `m`: WeLore's ``m.U`` and ``m.V``, ASVD4LLM's
``m.ALinear`` and ``m.BLinear``, SVD-LLM's ``x_u_proj`` and ``x_v_proj`` for a module ``x_proj``. A module that stands
there whole stays whole.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from featherweight.errors import CheckpointError, ConfigError
from featherweight.methods.low_rank_model import build_low_rank, low_rank_modules, record_in_config

_FORMS = (
    (re.compile(r"^(.+)\.U\.(weight|bias)$"), "U", r"\1"),
    (re.compile(r"^(.+)\.V\.(weight)$"), "V", r"\1"),
    (re.compile(r"^(.+)\.ALinear\.(weight|bias)$"), "U", r"\1"),
    (re.compile(r"^(.+)\.BLinear\.(weight)$"), "V", r"\1"),
    (re.compile(r"^(.+)_u_proj\.(weight|bias)$"), "U", r"\1_proj"),
    (re.compile(r"^(.+)_v_proj\.(weight)$"), "V", r"\1_proj"),
)


def load_low_rank_state_dict(
    model: nn.Module, source: Mapping[str, Tensor] | str | Path, *, allow_pickle: bool = False
) -> nn.Module:
    """Read a low-rank checkpoint of WeLore, ASVD4LLM or SVD-LLM into a dense model of the same architecture, in place.

    Args:
        model: a dense model with the module names of the original; keeps its dtype.
        source: a state dict, or a file: .safetensors, or one of torch that holds tensors alone.
        allow_pickle: also read a file that holds a whole pickled object, such as SVD-LLM's models. Such a file can run
            any code; allow it only for files that you made.
    Returns:
        The model.
    Raises:
        CheckpointError: if keys are missing, left over, or their shapes do not fit; the model is then partly changed.
        ConfigError: if the file needs `allow_pickle`.
    """
    given = source if isinstance(source, Mapping) else _read(Path(source), allow_pickle)
    state: dict[str, Tensor] = {}
    factors: dict[str, dict[str, Tensor]] = {}
    for key, tensor in given.items():
        name, renamed = _rename(key, model)
        state[renamed] = tensor
        if name is not None and renamed.endswith("weight"):
            factors.setdefault(name, {})[renamed.rsplit(".", 2)[-2]] = tensor
    ranks = {name: _rank(name, parts) for name, parts in factors.items()}
    if not ranks:
        raise CheckpointError(
            "load_low_rank_state_dict: source holds no pair of thin matrices; expected keys such as "
            "'layers.0.self_attn.q_proj.U.weight'. Load an ordinary checkpoint with load_state_dict."
        )
    build_low_rank(model, {"version": 1, "rank_pattern": ranks, "storage_pattern": dict.fromkeys(ranks, "factored")})
    for name, module in low_rank_modules(model).items():
        if f"{name}.U.bias" not in state and module.bias is not None and name in ranks:
            module.U.bias = None  # type: ignore[union-attr]
    try:
        result = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise CheckpointError(
            f"load_low_rank_state_dict: {str(error).splitlines()[-1].strip()}; expected the shapes of this model. "
            "Build the model from the configuration of the checkpoint."
        ) from error
    tied = _tied_names(model)
    missing = [key for key in result.missing_keys if key not in tied]
    if missing or result.unexpected_keys:
        problem = f"lacks '{missing[0]}'" if missing else f"has '{result.unexpected_keys[0]}' too much"
        raise CheckpointError(
            f"load_low_rank_state_dict: source {problem}; expected exactly the weights of this model. Build the model "
            "from the configuration of the checkpoint."
        )
    record_in_config(model)
    return model


def _rename(key: str, model: nn.Module) -> tuple[str | None, str]:
    """Return the module of a factor and its key here; None and the key itself for everything else."""
    for pattern, part, replacement in _FORMS:
        if found := pattern.match(key):
            name = pattern.sub(replacement, key)
            # A model may have a layer of such a name itself.
            if _has(model, name):
                return name, f"{name}.{part}.{found[2]}"
    return None, key


def _has(model: nn.Module, name: str) -> bool:
    try:
        model.get_submodule(name)
    except AttributeError:
        return False
    return True


def _rank(name: str, parts: Mapping[str, Tensor]) -> int:
    if parts.keys() != {"U", "V"} or parts["U"].ndim != 2 or parts["U"].shape[1] != parts["V"].shape[0]:
        shapes = {part: tuple(tensor.shape) for part, tensor in parts.items()}
        raise CheckpointError(
            f"load_low_rank_state_dict: '{name}' has factors of shapes {shapes}; expected U (M, R) and V (R, N). The "
            "checkpoint is damaged or of another kind."
        )
    return int(parts["V"].shape[0])


def _tied_names(model: nn.Module) -> set[str]:
    """Return the names of parameters that are known under another name, too."""
    first: dict[int, str] = {}
    tied = set()
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if first.setdefault(id(parameter), name) != name:
            tied |= {name, first[id(parameter)]}
    return tied


def _read(path: Path, allow_pickle: bool) -> Mapping[str, Tensor]:
    import pickle

    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content: Any = torch.load(path, map_location="cpu", weights_only=not allow_pickle)
    except (OSError, EOFError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(
            f"load_low_rank_state_dict: source={path} cannot be read ({str(error).partition(chr(10))[0]}); expected a "
            "complete file of tensors. Fetch or save it anew."
        ) from error
    except pickle.UnpicklingError as error:
        raise ConfigError(
            f"load_low_rank_state_dict: source={path} holds more than tensors; expected a state dict. If you trust the "
            "file, which can run any code, give allow_pickle=True."
        ) from error
    if isinstance(content, Mapping) and isinstance(content.get("model"), nn.Module):
        content = content["model"]  # SVD-LLM writes {"model": ..., "tokenizer": ...}
    return content.state_dict() if isinstance(content, nn.Module) else content
