"""Memory and speed of pre-training steps of LLaMA shapes on a GPU, beside the bytes that the formulas say.

    scripts/bench llama_memory --model 7b                 # all recipes, 1 x 256 and 16 x 256 tokens
    scripts/bench llama_memory --model 1b --recipes adamw,q_galore_core --rows 16
    scripts/bench llama_memory --model 60m --device cpu   # the same code on a CPU, with the tracker's peak
    scripts/bench llama_memory --model smollm2 --rows 1   # the pretrained SmolLM2-135M, rank 144 = hidden / 4

Random weights, bfloat16 or int8; activation checkpointing as in the published settings; sequences of 256 tokens. For
each recipe: bytes of weights, state and gradients by formula, on a CPU also as the tracker measures them; the peaks of
allocated and reserved memory over the steps after the first one (on a CPU the tracker's peak of one step); time of a
step without refresh and of a step in which every matrix refreshes; tokens/s. A recipe that runs out of memory gets a
row that says so.
"""

import argparse
import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from measurement import machine, synchronize, write_rows
from rich.console import Console
from rich.table import Table
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import featherweight as fw
from featherweight.models import load_model
from featherweight.optim import AdamW, ApolloMini, GaLoreAdamW, QGaLoreAdamW, layerwise, param_groups
from featherweight.optim.low_rank import LowRankOptimizer
from featherweight.training.footprint import predict_bytes

SEQ_LEN, VOCAB = 256, 32000
# hidden, feed-forward, layers, heads, rank (about hidden / 4)
SHAPES = {
    "60m": (512, 1376, 8, 8, 128),
    "130m": (768, 2048, 12, 12, 256),
    "350m": (1024, 2736, 24, 16, 256),
    "1b": (2048, 5461, 24, 32, 512),
    "3b": (3200, 8640, 26, 32, 800),
    "7b": (4096, 11008, 32, 32, 1024),
}

RANKS = {name: shape[-1] for name, shape in SHAPES.items()} | {"smollm2": 144}


@dataclass(frozen=True)
class Recipe:
    """What is done to the model, and how it is optimized."""

    optimizer: type[LowRankOptimizer] | None
    """None for torch's fused AdamW."""
    options: dict[str, Any] = field(default_factory=dict)
    methods: tuple[Any, ...] = ()
    rank: int | None = 0
    """0 takes that of the shape; None gives no rank."""


INT8, EVERYWHERE, CORE = fw.Int8(), fw.Int8(embeddings=True), fw.CoreGradient()
RECIPES = {
    "adamw": Recipe(None, rank=None),
    "adamw_8bit": Recipe(AdamW, {"state_bits": 8}, rank=None),
    "galore_8bit": Recipe(GaLoreAdamW, {"state_bits": 8, "basis_bits": 16}),
    "galore_8bit_core": Recipe(GaLoreAdamW, {"state_bits": 8, "basis_bits": 16}, (CORE,)),
    "q_galore": Recipe(QGaLoreAdamW, {}, (INT8,)),
    "q_galore_core": Recipe(QGaLoreAdamW, {}, (INT8, CORE)),
    "smallest": Recipe(QGaLoreAdamW, {"state_bits": 4}, (EVERYWHERE, CORE, fw.MsT()), rank=256),
    "apollo_mini": Recipe(ApolloMini, {"state_bits": 8}, (INT8,), rank=None),
}


def build_model(name: str, device: str) -> nn.Module:
    """Return a Llama of random bfloat16 weights, made on the device itself; or the pretrained SmolLM2."""
    if name == "smollm2":
        return _recomputing(load_model(name).to(device, torch.bfloat16))
    hidden, ffn, layers, heads, _ = SHAPES[name]
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=hidden,
        intermediate_size=ffn,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        tie_word_embeddings=False,
        use_cache=False,
    )
    torch.manual_seed(0)
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(default)
    return _recomputing(model)


def _recomputing(model: Any) -> nn.Module:
    # transformers renamed the method in version 5; its older name warns there.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    model.config.use_cache = False
    trained: nn.Module = model.train()
    return trained


def build_optimizer(recipe: Recipe, model: nn.Module, rank: int) -> torch.optim.Optimizer:
    """Return the optimizer of a recipe; ours are layer-wise."""
    if recipe.optimizer is None:
        return torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    if recipe.optimizer is AdamW:
        optimizer: LowRankOptimizer = AdamW(model.named_parameters(), lr=1e-4, **recipe.options)
    else:
        ranked = {} if recipe.rank is None else {"rank": recipe.rank or rank}
        optimizer = recipe.optimizer(param_groups(model), lr=1e-4, update_proj_gap=10**6, **ranked, **recipe.options)
    layerwise(model, optimizer)
    return optimizer


def run(model_name: str, recipe_name: str, rows: int, steps: int, device: str) -> dict[str, Any]:
    """Make some steps of one recipe; return a row."""
    recipe, rank = RECIPES[recipe_name], RANKS[model_name]
    row: dict[str, Any] = {"model": model_name, "recipe": recipe_name, "rows": rows, "seq_len": SEQ_LEN}
    columns = ("weights_gb", "state_gb", "gradients_gb", "weights_measured_gb", "state_measured_gb")
    columns += ("gradients_measured_gb", "allocated_gb", "reserved_gb", "step_s", "refresh_step_s")
    row |= dict.fromkeys((*columns, "tokens_per_s"), "")
    try:
        model = build_model(model_name, device)
        for method in recipe.methods:
            fw.apply(model, method)
        optimizer = build_optimizer(recipe, model, rank)
        tokens = torch.randint(0, VOCAB, (rows, SEQ_LEN), device=device)

        def step() -> None:
            model(tokens, labels=tokens).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        step()  # allocates the state and fits the first bases
        row |= _bytes(model, optimizer)
        row |= _measured(step, model, optimizer, steps, device)
        row["tokens_per_s"] = round(rows * SEQ_LEN / row["step_s"])
        for state in optimizer.state.values():
            if "next_refresh" in state:
                state["next_refresh"].zero_()
        row["refresh_step_s"] = round(_seconds(step), 4)
    except torch.OutOfMemoryError:
        row["allocated_gb"] = "out of memory"
    return row


def _bytes(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, float]:
    if isinstance(optimizer, LowRankOptimizer):
        predicted = predict_bytes(model, optimizer)
        found = (predicted["weights"], predicted["optimizer_state"], predicted["gradients"])
    else:
        weights = sum(p.numel() * p.element_size() for p in model.parameters())
        found = (weights, 2 * weights, weights)
    names = ("weights_gb", "state_gb", "gradients_gb")
    return {name: round(count / 1e9, 3) for name, count in zip(names, found, strict=True)}


def _measured(
    step: Callable[[], None], model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, device: str
) -> dict[str, float]:
    if device == "cpu":
        with fw.measure_memory(model, optimizer) as memory:
            step()
        peaks = {"allocated_gb": round(memory.peak_bytes / 1e9, 3)}
        for name, category in (("weights", "weights"), ("state", "optimizer_state"), ("gradients", "gradients")):
            peaks[f"{name}_measured_gb"] = round(memory.max_by_category[category] / 1e9, 3)
    else:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    seconds = [_seconds(step) for _ in range(steps)]
    if device != "cpu":
        allocated, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
        peaks = {"allocated_gb": round(allocated / 1e9, 3), "reserved_gb": round(reserved / 1e9, 3)}
    return {**peaks, "step_s": round(statistics.median(seconds), 4)}


def _seconds(step: Callable[[], None]) -> float:
    synchronize()
    start = time.perf_counter()
    step()
    synchronize()
    return time.perf_counter() - start


def main() -> None:
    """Read the arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(RANKS), default="60m")
    parser.add_argument("--recipes", default=",".join(RECIPES))
    parser.add_argument("--rows", default="1,16", help="sequences of 256 tokens in a batch, separated by commas")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    print(machine())
    found = []
    for rows in map(int, arguments.rows.split(",")):
        for name in arguments.recipes.split(","):
            found.append(run(arguments.model, name, rows, arguments.steps, arguments.device))
            print(found[-1], flush=True)
            gc.collect()
            if arguments.device != "cpu":
                torch.cuda.empty_cache()
    write_rows("llama_memory", found)
    table = Table(*found[0])
    for row in found:
        table.add_row(*map(str, row.values()))
    Console(width=180).print(table)


if __name__ == "__main__":
    main()
