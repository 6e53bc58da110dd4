"""Merging an adapter into a model for good, and what switching costs."""

import time
from collections.abc import Mapping

import torch
from torch import nn

from featherweight.errors import ConfigError
from featherweight.methods.low_rank_model import low_rank_modules, record_in_config
from featherweight.methods.s2ft.adapter import Adapter
from featherweight.methods.s2ft.base_slices import ChannelChange, restore_, write_
from featherweight.methods.s2ft.fingerprint import base_fingerprint, base_weights, linear_shapes, require_same_base
from featherweight.methods.s2ft.quantized_base import backend_of
from featherweight.methods.s2ft.whole_tensors import require_fitting, write_whole_
from featherweight.nn.low_rank_linear import matrix_of
from featherweight.nn.module_tree import replace_module
from featherweight.report import Report


@torch.no_grad()
def merge_into(model: nn.Module, adapter: Adapter) -> None:
    """Add an adapter's changes to the weights of a plain model, in place; heads and biases take their places.

    A layer of low rank becomes an ordinary one, because the sum of its product and the change has a higher rank.

    Args:
        model: without tuners, floating-point weights.
        adapter: of this model.
    Raises:
        CheckpointError: if the adapter belongs to another model or is damaged; the model is then as before.
        ConfigError: if a weight is quantised.
        NumericsError: if the adapter holds NaN or infinite numbers.
    """
    adapter.require_sound("merge: adapter", linear_shapes(model, adapter.modules, "merge"))
    ours = base_weights(model, adapter.fingerprint or {})
    require_same_base(adapter.fingerprint, base_fingerprint(ours), "merge")
    whole = require_fitting(model, adapter.extra, "merge")
    for name in adapter.modules:
        layer = model.get_submodule(name)
        if backend_of(layer) is not None:
            raise ConfigError(
                f"merge: '{name}' is a {type(layer).__name__} of quantised weights; expected floating-point ones. Load "
                "the base without quantisation, or open the adapter with PeftModel and call merge_and_unload."
            )
    write_whole_(model, whole)  # under the names that the base has now
    low_rank = low_rank_modules(model)
    for name, change in adapter.modules.items():
        if name in low_rank:
            replace_module(model, name, low_rank[name].to_linear())
        write_(matrix_of(model.get_submodule(name)), [change])
    record_in_config(model)


def describe(adapter: Adapter) -> Report:
    """Return what an adapter changes, for people."""
    counts = [len(change.indices) for change in adapter.modules.values()]
    size = sum(change.delta.numel() * change.delta.element_size() for change in adapter.modules.values())
    report = Report("S2FT adapter")
    report.add_facts(
        {
            "base model": adapter.config.get("base_model_name_or_path") or "unknown",
            "modules": len(counts),
            "trained parameters": adapter.parameters,
            "bytes of changes": size,
            "fewest channels": min(counts),
            "most channels (rank as LoRA)": max(counts),
            "other tensors": len(adapter.extra),
        }
    )
    rows = [
        [
            name,
            change.axis,
            *change.delta.shape,
            str(change.delta.dtype).removeprefix("torch."),
            float(change.delta.norm()),
        ]
        for name, change in adapter.modules.items()
    ]
    report.add_table("Modules", ["module", "axis", "channels", "features", "dtype", "norm"], rows)
    return report


def switch_times(
    change: ChannelChange, features: int, *, lora_rank: int, rounds: int = 7, dtype: torch.dtype = torch.float32
) -> dict[str, float]:
    """Measure how long it takes to exchange one module's adapter on random weights.

    Args:
        change: the shape that matters; written into and taken out of the weight.
        features: size of the axis that its channels lie on.
        lora_rank: of the LoRA adapter that is merged for comparison.
        rounds: measured runs of each, alternating; the fastest counts.
        dtype: of the weight.
    Returns:
        Seconds: "standard" and "channel_major" for taking one change out and writing another; "lora_merge" for adding
        B A to the weight, which a switch of LoRA does twice.
    """
    other = change.delta.shape[1]
    shape = (other, features) if change.axis == "input" else (features, other)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(shape, generator=generator).to(dtype)
    turned = weight.t().contiguous().t()
    low = torch.randn(shape[0], lora_rank, generator=generator).to(dtype)
    high = torch.randn(lora_rank, shape[1], generator=generator).to(dtype)

    def exchange(matrix: torch.Tensor) -> None:
        restore_(matrix, slices[id(matrix)])
        slices[id(matrix)] = write_(matrix, [change])

    slices = {id(one): write_(one, [change]) for one in (weight, turned)}
    work = {
        "standard": lambda: exchange(weight),
        "channel_major": lambda: exchange(turned),
        "lora_merge": lambda: weight.add_(low @ high),
    }
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(rounds + 1):
        for name, function in work.items():
            start = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - start)
    return {name: min(runs[1:]) for name, runs in seconds.items()}


def switch_report(adapter: Adapter, shapes: Mapping[str, list[float]]) -> Report:
    """Return the times of `switch_times` for each shape of an adapter's modules."""
    seen: dict[tuple[int, ...], ChannelChange] = {}
    for name, change in adapter.modules.items():
        if name in shapes:
            rows, columns = (int(size) for size in shapes[name][:2])
            seen.setdefault((rows, columns, len(change.indices), change.axis == "input"), change)
    report = Report("Switching one module")
    table = []
    for (rows, columns, channels, is_input), change in seen.items():
        features = columns if is_input else rows
        # LoRA of as many parameters.
        rank = max(1, round(change.delta.numel() / (rows + columns)))
        times = switch_times(change, features, lora_rank=rank)
        table.append(
            [
                f"{rows} x {columns}",
                channels,
                rank,
                *(1e3 * times[name] for name in ("standard", "channel_major", "lora_merge")),
            ]
        )
    report.add_table(
        "Fastest runs",
        ["weight", "channels", "LoRA rank", "switch (ms)", "switch, by channel (ms)", "LoRA merge (ms)"],
        table,
    )
    return report
