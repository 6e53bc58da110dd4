"""Which modules and parameters of a model a pattern selects.

The single place that reads `target_modules` and `exclude_modules`; optimizers and methods ask here, so that the same
words select the same weights everywhere. The rules are those of PEFT.
"""

import contextlib
import re
from collections.abc import Iterable, Mapping, Sequence

from torch import nn

from featherweight.errors import ConfigError, nearest

ALL_LINEAR = "all-linear"

Pattern = str | Sequence[str]


def select_modules(
    model: nn.Module, target_modules: Pattern = ALL_LINEAR, exclude_modules: Pattern = ()
) -> dict[str, nn.Module]:
    """Return the modules that a pattern selects, by their full name, in the model's order.

    Args:
        model: any module; Hugging Face models are asked for their output embedding.
        target_modules: "all-linear" (every linear layer, fused expert stacks included, without the output head), a
            regular expression that must match the whole module name, or a list of names, each matching the full name
            or its end after a dot (`"q_proj"` matches `"model.layers.0.self_attn.q_proj"`). A single name given as
            text is a regular expression too, so that it matches at the top level alone.
        exclude_modules: a regular expression or a list of names; what it matches is left out. May match nothing.
    Returns:
        Mapping of full module name to module; never empty.
    Raises:
        ConfigError: if nothing is selected (then it lists the nearest names), if everything is excluded, or for a
            pattern that is no regular expression.
    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
        >>> list(select_modules(model, ["0"]))
        ['0']
    """
    modules = {name: module for name, module in model.named_modules() if name}
    if target_modules == ALL_LINEAR:
        head = _output_heads(model)
        selected = {name: module for name, module in modules.items() if _is_linear(module) and id(module) not in head}
    else:
        selected = {name: module for name, module in modules.items() if _matches(name, target_modules)}
    if not selected:
        raise ConfigError(_nothing_matches(target_modules, modules))
    kept = {name: module for name, module in selected.items() if not _matches(name, exclude_modules)}
    if not kept:
        raise ConfigError(
            f"exclude_modules={exclude_modules!r} leaves none of the {len(selected)} modules that "
            f"target_modules={target_modules!r} matches; expected at least one. Exclude fewer."
        )
    return kept


def select_matrices(
    model: nn.Module, target_modules: Pattern = ALL_LINEAR, exclude_modules: Pattern = (), *, min_numel: int = 0
) -> dict[str, nn.Parameter]:
    """Return the trainable weight matrices of the selected modules, by their full parameter name.

    A weight counts once however many modules share it. A weight that is tied to an embedding follows the embedding,
    whose gradients are sparse by rows, and is left out. So are biases, stacked ones of fused experts too.

    Args:
        model: any module.
        target_modules: see `select_modules`.
        exclude_modules: see `select_modules`.
        min_numel: smaller weights are left out.
    Returns:
        Mapping of parameter name to parameter, each of two dimensions or more; empty if all are frozen or too small.
    Raises:
        ConfigError: if no module is selected.
    """
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    matrices: dict[str, nn.Parameter] = {}
    seen: set[int] = set()
    for module_name, module in select_modules(model, target_modules, exclude_modules).items():
        for name, parameter in module.named_parameters(recurse=False):
            is_matrix = parameter.ndim >= 2 and not name.endswith("bias")
            wanted = parameter.requires_grad and parameter.numel() >= min_numel
            if is_matrix and wanted and id(parameter) not in embeddings and id(parameter) not in seen:
                seen.add(id(parameter))
                matrices[f"{module_name}.{name}"] = parameter
    return matrices


def select_embeddings(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the trainable parameters of embeddings and output heads, tied ones once, by their full parameter name."""
    heads = _output_heads(model)
    members = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, nn.Embedding) or id(module) in heads
        for parameter in module.parameters(recurse=False)
    }
    return {name: p for name, p in model.named_parameters() if id(p) in members and p.requires_grad}


def select_embedding_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Return the embeddings and output heads of a model by their full name; empty if there are none."""
    heads = _output_heads(model)
    return {
        name: module
        for name, module in model.named_modules()
        if name and (isinstance(module, nn.Embedding) or id(module) in heads)
    }


def classification_head(model: nn.Module) -> dict[str, nn.Module]:
    """Return what stands on the body of a classifier of transformers, by name; empty for every other model.

    Example:
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> sizes = dict(vocab_size=8, hidden_size=4, num_hidden_layers=1, num_attention_heads=1, intermediate_size=4)
        >>> list(classification_head(BertForSequenceClassification(BertConfig(**sizes))))
        ['classifier']
    """
    if not type(model).__name__.endswith("ForSequenceClassification"):
        return {}
    body = getattr(model, "base_model_prefix", "")
    return {
        name: module
        for name, module in model.named_children()
        if name != body and next(module.parameters(), None) is not None
    }


def _is_linear(module: nn.Module) -> bool:
    # Conv1D: GPT-2's transposed linear layer
    if isinstance(module, nn.Linear) or type(module).__name__ in ("Conv1D", "Int8Conv1D"):
        return True
    # Fused experts (Mixtral, Qwen MoE, ... in transformers 5) are 3-D parameters of a module outside torch.nn. Position
    # embeddings and class tokens (ViT) are 3-D too, but stack only one.
    own = list(module.parameters(recurse=False))
    return not type(module).__module__.startswith("torch.nn") and any(p.ndim == 3 and p.shape[0] > 1 for p in own)


def _output_heads(model: nn.Module) -> set[int]:
    """Identify heads: what a Hugging Face model names as such, and linear layers that share an embedding's weight.

    The layers of a classification head are some: small, new, and to be trained whole.
    """
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    heads = {id(m) for m in model.modules() if isinstance(m, nn.Linear) and id(m.weight) in embeddings}
    for module in model.modules():
        named = getattr(module, "get_output_embeddings", None)
        if callable(named) and (head := named()) is not None:
            heads.add(id(head))
        for top in classification_head(module).values():
            heads.update(id(one) for one in top.modules() if _is_linear(one))
    return heads


def _matches(name: str, pattern: Pattern) -> bool:
    if isinstance(pattern, str):
        try:
            return re.fullmatch(pattern, name) is not None
        except re.error as error:
            raise ConfigError(
                f"selection of modules: pattern={pattern!r} is no regular expression ({error}); expected one, such as "
                "'.*q_proj'. Correct it, or give a list of names."
            ) from error
    return any(name == target or name.endswith(f".{target}") for target in pattern)


def _nothing_matches(target_modules: Pattern, modules: Mapping[str, nn.Module]) -> str:
    """Say what the nearest modules are called and how a pattern would match them."""
    wanted: Iterable[str] = [target_modules] if isinstance(target_modules, str) else target_modules
    find = _meant_by_expression if isinstance(target_modules, str) else _meant_by_name
    hint = next((found for target in wanted if (found := find(target, list(modules)))), None)
    if hint is None:
        short = {name.rsplit(".", 1)[-1] for name in modules}
        close = [match for target in wanted for match in nearest(target, sorted(short | set(modules)))]
        near = (
            f"Nearest names: {', '.join(close)}."
            if close
            else f"Names in this model: {', '.join(sorted(short))[:300]}."
        )
        example = f", such as {close[:1]}," if close else ""
        hint = f"{near} A list of names{example} matches the end of full names."
    return (
        f"target_modules={target_modules!r} matches no module; expected {ALL_LINEAR!r}, a regular expression or a list "
        f"of names. {hint}"
    )


def _meant_by_expression(pattern: str, names: Sequence[str]) -> str | None:
    """Return how a regular expression would match that is only a part of full names; None if it is not even that."""
    if ends := [name for name in names if _matches(name, [pattern])]:
        return (
            f"A text must match the whole name, such as '{ends[0]}'. Write [{pattern!r}], which matches the end, or "
            f"'.*{re.escape(pattern)}'."
        )
    if parts := [name for name in names if re.search(pattern, name)]:
        return f"It must match the whole name, such as '{parts[0]}'. Write '.*({pattern}).*'."
    return None


def _meant_by_name(target: str, names: Sequence[str]) -> str | None:
    """Return how a name of a list would match that is a regular expression; None if it is none."""
    if set(target).isdisjoint("*+?()[]|^$\\"):
        return None
    with contextlib.suppress(re.error):
        if meant := [name for name in names if re.search(target, name)]:
            return (
                f"Names of a list are no regular expressions. Write '.*({target}).*' without a list for modules such "
                f"as '{meant[0]}'."
            )
    return None
