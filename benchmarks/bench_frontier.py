"""Which card and which host train 8 to 123 billion weights layer by layer? Simulated: nothing here runs on a GPU.

    scripts/bench frontier [--models llama-3-8b ...] [--recipes ...] [--tokens 131072]   # skips rows in the CSV
    scripts/bench frontier --table                                       # the table of docs/layer_major.md

One row of 8192 tokens a step, which is one chunk, or a longer one in chunks of 8192; bfloat16 or int8 weights, states
and inputs of the layers on the host, feed-forward layer and head in parts (MsT). Device: tensors of two
simulated steps by shape, in the segments of PyTorch's allocator on the smallest device that holds them, and with
expandable segments, each with workspaces and context; 8 % of a card stay free. Host: layer inputs, weights, states, and
4 GiB for the process; 10 % of its memory stay free. Link: bytes of a step over rates that are assumed, 25 and 50 GB/s
each way for PCIe 4 and 5. Arithmetic: FLOPs of the step at 80 and 400 TFLOP/s.
"""

import argparse
from typing import Any

from measurement import read_rows, write_rows

from featherweight.planner import Target
from featherweight.planner.candidates import family_called
from featherweight.planner.host import host_need
from featherweight.planner.layered import layered_recipe
from featherweight.planner.need import expandable_need_of, smallest_need_of
from featherweight.planner.plan import base_recipe
from featherweight.training.estimate import estimate_memory

NAME = "frontier"
TOKENS = 8192
GIB = 2**30
CARDS_GIB = (8, 12, 16, 24, 32, 48, 80, 141)
HOSTS_GB = (32, 64, 128, 256, 512, 1024, 1536)
LINKS = {"pcie4": 25e9, "pcie5": 50e9}
RATES = {"80": 80e12, "400": 400e12}
SHAPES: dict[str, Any] = {
    "llama-3-8b": "llama-3-8b",
    "32B (Qwen2.5's)": {
        "model_type": "qwen2",
        "hidden_size": 5120,
        "intermediate_size": 27648,
        "num_hidden_layers": 64,
        "num_attention_heads": 40,
        "num_key_value_heads": 8,
        "vocab_size": 152064,
        "max_position_embeddings": 131072,
        "tie_word_embeddings": False,
    },
    "llama-3-70b": "llama-3-70b",
    "123B (Mistral Large's)": {
        "model_type": "mistral",
        "hidden_size": 12288,
        "intermediate_size": 28672,
        "num_hidden_layers": 88,
        "num_attention_heads": 96,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 32768,
        "max_position_embeddings": 131072,
        "sliding_window": None,
        "tie_word_embeddings": False,
    },
}
RECIPES = (
    "AdamW 8-bit, layer-wise",
    "GaLore 8-bit, rank 1/4",
    "Q-GaLore, rank 1/4",
    "Q-GaLore, rank 1/16, 4-bit, int8 embeddings",
    "LoRA, rank 16, int8 weights",
)


def run(shape: str, name: str, tokens: int) -> dict[str, Any]:
    """Simulate one recipe with one model and one row."""
    stretched = [f"task.max_positions={tokens}"] if shape.startswith("llama") else []
    base = base_recipe(SHAPES[shape], None, 1024).override([*stretched, f"task.seq_len={tokens}"])
    recipe = layered_recipe(base, family_called(name), "both")
    target = Target.of(device="h200")
    estimate = estimate_memory(None, recipe, device=target.device)
    need, host = smallest_need_of(estimate, target), host_need(recipe)
    growing = expandable_need_of(estimate, target)
    card, growing_card = (
        next((f"{size} GB" for size in CARDS_GIB if one.total_bytes <= 0.92 * size * GIB), "none")
        for one in (need, growing)
    )
    memory = next((f"{size} GB" for size in HOSTS_GB if host.total_bytes <= 0.9e9 * size), "none")
    flops = sum(estimate.cost.flops.values())
    return {
        "model": shape,
        "recipe": name,
        "tokens": tokens,
        "device_gib": round(need.total_bytes / GIB, 2),
        "tensors_gib": round(need.allocated_bytes / GIB, 2),
        "state_gib": round(estimate.peak_by_category["optimizer_state"] / GIB, 2),
        "card": card,
        "expandable_gib": round(growing.total_bytes / GIB, 2),
        "expandable_card": growing_card,
        "host_gib": round(host.total_bytes / GIB, 1),
        "host_weights_gib": round(host.weights_bytes / GIB, 1),
        "host_states_gib": round(host.states_bytes / GIB, 1),
        "host_inputs_gib": round(host.inputs_bytes / GIB, 1),
        "host": memory,
        "read_gib": round(host.read_bytes / GIB, 2),
        "written_gib": round(host.written_bytes / GIB, 2),
        **{f"{name}_s": round(max(host.read_bytes, host.written_bytes) / rate, 2) for name, rate in LINKS.items()},
        "tflop": round(flops / 1e12, 1),
        **{f"arithmetic_{name}_s": round(flops / rate, 1) for name, rate in RATES.items()},
    }


def print_table() -> None:
    """Print the CSV as a table."""
    print(
        "| model | recipe | tokens | tensors, GiB | card | expandable | host, GiB | of it | link, s | arithmetic, s |"
    )
    print("|" + "---|" * 10)
    for row in read_rows(NAME):
        parts = f"weights {row['host_weights_gib']}, states {row['host_states_gib']}, inputs {row['host_inputs_gib']}"
        print(
            f"| {row['model']} | {row['recipe']} | {row['tokens']} | {row['tensors_gib']} | "
            f"{row['device_gib']}: {row['card']} | "
            f"{row['expandable_gib']}: {row['expandable_card']} | {row['host_gib']}: {row['host']} | {parts} | "
            f"{row['pcie4_s']} / {row['pcie5_s']} | {row['arithmetic_80_s']} / {row['arithmetic_400_s']} |"
        )


def main() -> None:
    """Simulate what the CSV lacks, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), choices=RECIPES)
    parser.add_argument("--tokens", type=int, default=TOKENS)
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    if options.table:
        print_table()
        return
    for shape in options.models:
        for name in options.recipes:
            key = (shape, name, str(options.tokens))
            if key not in [(row["model"], row["recipe"], row["tokens"]) for row in read_rows(NAME)]:
                found = run(shape, name, options.tokens)
                print(found, flush=True)
                write_rows(NAME, [found])


if __name__ == "__main__":
    main()
