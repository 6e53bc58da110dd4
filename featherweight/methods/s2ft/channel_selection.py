"""Which channels of each module are trained.

A random choice depends on the seed and the module's name alone: neither the order of the modules nor what else is
chosen changes it.
Shapes: C channels of a module, U units, S selected channels.
"""

import random
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from featherweight.errors import ConfigError, did_you_mean
from featherweight.linalg.random import keyed_generator
from featherweight.methods.s2ft.adapter import Adapter
from featherweight.methods.s2ft.channel_scores import ChannelStatistics, channel_scores
from featherweight.methods.s2ft.config import S2FTConfig
from featherweight.methods.s2ft.targets import Target

Indices = dict[str, Tensor]
"""Full module name -> (S,) int32, ascending."""


def choose_channels(
    targets: Mapping[str, Target],
    config: S2FTConfig,
    weights: Any,
    statistics: Mapping[str, ChannelStatistics] | None = None,
) -> Indices:
    """Choose the channels of all modules.

    Args:
        targets: the modules, by full name.
        config: says how.
        weights: function (name) -> (C, K) weight by channels of its axis, dequantised; called when scores need it.
        statistics: of calibration, by module name.
    Returns:
        Indices of every module; empty ones where nothing is trained.
    Raises:
        ConfigError: if a strategy needs data, an explicit choice does not fit, or too little is left by `exclude`.
    """
    if isinstance(config.selection, Mapping):
        return _explicit(targets, config.selection)
    if config.selection == "stored":
        # -1 until the adapter's file is read; using one by mistake fails in the first forward pass.
        return {name: torch.full((target.units,), -1, dtype=torch.int32) for name, target in targets.items()}
    if config.compat == "official":
        return _official(targets, config)
    excluded = excluded_channels(config.exclude)
    scores = {
        name: _mask_excluded(_scores(name, target, config, weights, statistics), excluded.get(name), target, name)
        for name, target in targets.items()
    }
    if config.scope == "global":
        return _best_over_layers(targets, scores)
    return {name: _best(scores[name], target.units, target.unit) for name, target in targets.items()}


def _scores(
    name: str,
    target: Target,
    config: S2FTConfig,
    weights: Any,
    statistics: Mapping[str, ChannelStatistics] | None,
) -> Tensor:
    """Return (U,) scores on the CPU; the largest are trained."""
    units = target.channels // target.unit
    if config.selection == "random":
        generator = keyed_generator(config.seed, zlib.crc32(name.encode()))
        return torch.rand(units, generator=generator, dtype=torch.float64)
    known = (statistics or {}).get(name)
    if callable(config.selection):
        scores = torch.as_tensor(config.selection(name, target.module, known), dtype=torch.float64).flatten().cpu()
        if len(scores) == target.channels and target.unit > 1:
            scores = scores.view(-1, target.unit).sum(-1)
        if len(scores) != units:
            raise ConfigError(
                f"S2FTConfig: selection function returned scores={len(scores)} for '{name}'; expected "
                f"{target.channels}, "
                f"one for each {'input' if target.axis == 'input' else 'output'} channel. Correct the function."
            )
    else:
        scores = channel_scores(
            config.selection, weights(name), target.unit, known, spectral_rank=config.spectral_rank
        ).double()
    scores = scores.cpu()
    if not bool(torch.isfinite(scores).all()):
        raise ConfigError(
            f"S2FTConfig: selection={config.selection!r} gives scores for '{name}' that are not finite; expected "
            "finite numbers. Look for NaN in the weight or the calibration data."
        )
    return scores if config.select == "largest" else -scores


def _best(scores_U: Tensor, units: int, unit: int) -> Tensor:
    # Stable: among equals the first units win, on every device.
    chosen = torch.sort(scores_U, descending=True, stable=True).indices[:units].sort().values
    return _channels_of(chosen, unit)


def _channels_of(units: Tensor, unit: int) -> Tensor:
    return (units[:, None] * unit + torch.arange(unit)).flatten().to(torch.int32)


def _best_over_layers(targets: Mapping[str, Target], scores: Mapping[str, Tensor]) -> Indices:
    """Choose the best units over all modules of a kind: the same last name, axis and unit."""
    kinds: dict[Any, list[str]] = {}
    for name, target in targets.items():
        kinds.setdefault((name.rpartition(".")[2], target.axis, target.unit, target.channels), []).append(name)
    chosen: Indices = {}
    for (_, _, unit, _), names in kinds.items():
        pooled = torch.cat([scores[name] for name in names])
        count = sum(targets[name].units for name in names)
        is_chosen = torch.zeros(len(pooled), dtype=torch.bool)
        is_chosen[torch.sort(pooled, descending=True, stable=True).indices[:count]] = True
        for name, part in zip(names, is_chosen.view(len(names), -1), strict=True):
            chosen[name] = _channels_of(part.nonzero().flatten(), unit)
    return {name: chosen[name] for name in targets}


def _mask_excluded(scores: Tensor, excluded: Tensor | None, target: Target, name: str) -> Tensor:
    if excluded is None or not len(excluded):
        return scores
    taken = (excluded.long() // target.unit).unique()
    free = len(scores) - len(taken)
    if free < target.units:
        raise ConfigError(
            f"S2FTConfig: exclude leaves {free * target.unit} channels of '{name}'; expected at least "
            f"{target.units * target.unit}. Train fewer channels, or exclude fewer adapters."
        )
    return scores.index_fill(0, taken, -torch.inf)


def excluded_channels(exclude: Any) -> dict[str, Tensor]:
    """Return the channels that adapters or mappings take, by full module name.

    Args:
        exclude: None; a folder of an adapter, an `Adapter`, a mapping of module names to indices; or a list of such.
    """
    if exclude is None:
        return {}
    sources = exclude if isinstance(exclude, list | tuple) else [exclude]
    taken: dict[str, list[Tensor]] = {}
    for source in sources:
        if isinstance(source, Mapping):
            found = {name: torch.as_tensor(indices) for name, indices in source.items()}
        else:
            adapter = source if isinstance(source, Adapter) else Adapter.load(source)
            found = {name: change.indices for name, change in adapter.modules.items()}
        for name, indices in found.items():
            taken.setdefault(name, []).append(indices.long().cpu())
    return {name: torch.cat(parts).unique() for name, parts in taken.items()}


def _explicit(targets: Mapping[str, Target], chosen: Mapping[str, Any]) -> Indices:
    unknown = [name for name in chosen if name not in targets]
    if unknown:
        raise ConfigError(
            f"S2FTConfig: selection names '{unknown[0]}', which is no target module; expected full names of those. "
            f"{did_you_mean(unknown[0], targets)}"
        )
    indices = {}
    for name, target in targets.items():
        given = torch.as_tensor(chosen.get(name, ())).flatten().cpu()
        if len(given) and (given.is_floating_point() or given.dtype == torch.bool):
            raise ConfigError(
                f"S2FTConfig: selection of '{name}' holds {str(given.dtype).removeprefix('torch.')} numbers; expected "
                "indices of channels. Give whole numbers; of a mask, mask.nonzero()."
            )
        one = given.long()
        ordered = one.unique()
        if len(ordered) != len(one) or (len(one) and not 0 <= int(ordered[0]) <= int(ordered[-1]) < target.channels):
            raise ConfigError(
                f"S2FTConfig: selection of '{name}' holds indices out of range or twice; expected different ones, "
                f"0 <= index < {target.channels}. Correct them."
            )
        indices[name] = ordered.to(torch.int32)
    return indices


# ---- the official code's draws ---------------------------------------------------------------------------------------


def official_units(counts: Sequence[tuple[int, float]], layers: int, seed: int) -> list[list[list[int]]]:
    """Draw units as the paper's code does: without replacement over all layers, one kind after the other.

    Args:
        counts: for each kind of matrix, in the order v, o, up, down: units in a layer, and the share of all to draw.
        layers: layers of the model.
        seed: of Python's generator.
    Returns:
        For each kind and layer, the chosen units, ascending.
    Example:
        >>> v, o = official_units([(32, 0.0), (32, 0.052)], layers=32, seed=0)
        >>> sum(map(len, o)), o[0][:2], o[1]
        (53, [2, 28], [])
    """
    generator = random.Random(seed)
    drawn = []
    for units, share in counts:
        total = units * layers
        ids = sorted(generator.sample(list(range(total)), int(total * share)))
        drawn.append([[one - layer * units for one in ids if one // units == layer] for layer in range(layers)])
    return drawn


OFFICIAL_ENDS = ("v_proj", "o_proj", "up_proj", "down_proj")


def _official(targets: Mapping[str, Target], config: S2FTConfig) -> Indices:
    if not set(config.channel_pattern) <= set(OFFICIAL_ENDS) or not config.channel_pattern:
        raise ConfigError(
            f"S2FTConfig: channel_pattern={config.channel_pattern!r} does not go with compat='official'; expected "
            f"shares for some of {', '.join(OFFICIAL_ENDS)}. Write for example {{'o_proj': 0.052, 'down_proj': 0.02}}."
        )
    kinds = {end: [name for name in targets if name.endswith(f".{end}")] for end in OFFICIAL_ENDS}
    layers = max(len(names) for names in kinds.values())
    counts = []
    for end, names in kinds.items():
        unit = targets[names[0]].unit if names else 1
        units = targets[names[0]].channels // unit if names else 0
        counts.append((units, float(config.channel_pattern.get(end, 0.0)) if names else 0.0))
    drawn = official_units(counts, layers, config.seed)
    indices: Indices = {}
    for (_, names), per_layer in zip(kinds.items(), drawn, strict=True):
        for name, units_chosen in zip(names, per_layer, strict=False):
            indices[name] = _channels_of(torch.tensor(units_chosen, dtype=torch.int64), targets[name].unit)
    return {name: indices.get(name, torch.empty(0, dtype=torch.int32)) for name in targets}


def by_channel(weight: Tensor, axis: str) -> Tensor:
    """Return an (out_features, in_features) weight as (C, K): one row for each channel of an axis."""
    return weight.t() if axis == "input" else weight
