"""What does each of 8, 64 and 1024 GPUs hold and send? Bytes and traffic of Llamas of 7B and 70B under each sharding.

    scripts/bench ranks [--models llama-7b ...] [--gpus 8 64 ...]     # one row for each recipe, sharding and count
    scripts/bench ranks --table                                       # the tables of docs/distributed.md from the CSV

bfloat16 weights, one row of 2048 tokens for each GPU, activation checkpointing, the head in chunks; bytes of weights,
state and gradients by formula, activations by a simulation of one process. A star in the table: bases in shares, as
`basis: auto` wants them there. Nothing here runs on GPUs.
"""

import argparse
import csv
from typing import Any

from measurement import RESULTS, write_rows

from featherweight.planner.ranks import plan_ranks
from featherweight.training.estimate import MemoryEstimate, estimate_memory
from featherweight.training.recipe import Recipe

MODELS, GPUS, CARD = ("llama-7b", "llama-2-70b"), (8, 64, 1024), "h100-80gb"
CORES: dict[str, Any] = {"layerwise": True, "proj_type": "right", "lr": 0.01}
RECIPES: dict[str, dict[str, Any]] = {
    "AdamW": {"optimizer": {"name": "adamw", "lr": 1e-4}, "methods": ["mst"]},
    "GaLore, cores, R = 128": {
        "optimizer": {"name": "galore", "rank": 128, **CORES},
        "methods": ["mst", "core_gradient"],
    },
    "GaLore, cores, R = 1024": {
        "optimizer": {"name": "galore", "rank": 1024, **CORES},
        "methods": ["mst", "core_gradient"],
    },
    "GaLore, cores, int8, R = 1024": {
        "optimizer": {"name": "galore", "rank": 1024, **CORES},
        "methods": ["mst", "int8", "core_gradient"],
    },
}
"""What differs from `recipe_of`."""
COLUMNS = ("weights", "gathered", "gradients", "optimizer_state", "activations", "others")


def main() -> None:
    """Plan each recipe for each number of GPUs, and write its rows at once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--gpus", nargs="+", type=int, default=GPUS)
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    if options.table:
        table()
        return
    for model in options.models:
        for name in RECIPES:
            estimate = estimate_memory(None, recipe_of(model, name, 1))
            for gpus in options.gpus:
                run(model, name, gpus, estimate)


def recipe_of(model: str, name: str, gpus: int) -> Recipe:
    """Return the recipe in which each GPU has one micro-batch of a step."""
    task = {"name": "text", "model": model, "weights": "random", "corpus": "english", "seq_len": 2048}
    values = {"task": task, "precision": "bf16", "activation_checkpointing": True, "steps": 4, "micro_batch_size": 1}
    return Recipe.parse({**values, **RECIPES[name], "accumulation_steps": gpus}, where=name)


def run(model: str, name: str, gpus: int, estimate: MemoryEstimate) -> None:
    """Plan one recipe for one number of GPUs."""
    found = plan_ranks(recipe_of(model, name, gpus), gpus, device=CARD, estimate=estimate)
    rows = [
        {
            "model": model,
            "recipe": name,
            "gpus": gpus,
            "sharding": row.sharding,
            "shard_size": row.shard_size,
            "basis": row.basis,
            **{f"{key}_bytes": row.bytes_by_category[key] for key in COLUMNS},
            "total_bytes": row.total_bytes,
            "sent_bytes": round(row.sent_bytes),
            "between_nodes_bytes": "" if row.between_nodes_bytes is None else round(row.between_nodes_bytes),
            "fits": row.total_bytes <= found.target.usable_bytes,
        }
        for row in found.rows
    ]
    write_rows("ranks", rows)
    print(model, name, gpus, "refused:", list(found.refused), found.verdict, flush=True)


def table() -> None:
    """Print bytes and traffic of a GPU by the newest plan of each recipe, as the page has them."""
    with open(RESULTS / "ranks.csv", encoding="utf-8", newline="") as file:
        rows = {(one["model"], one["recipe"], one["sharding"], one["gpus"]): one for one in csv.DictReader(file)}
    counts = list(dict.fromkeys(key[3] for key in rows))
    print(f"| model | recipe | sharding | {' | '.join(f'{count} GPUs' for count in counts)} |")
    print(f"|---|---|---|{'---|' * len(counts)}")
    for key in dict.fromkeys(key[:3] for key in rows):
        print(f"| {' | '.join([*key, *(cell_of(rows.get((*key, count))) for count in counts)])} |")


def cell_of(row: dict[str, str] | None) -> str:
    """Return what a GPU holds and sends under one plan."""
    if row is None:
        return "-"
    between = f", {int(row['between_nodes_bytes']) / 1e9:.2f} between" if row["between_nodes_bytes"] else ""
    held = f"{int(row['total_bytes']) / 2**30:.1f} GiB"
    mark = "*" if row["basis"] == "sharded" else ""
    return f"{held if row['fits'] == 'True' else f'({held})'}{mark}, {int(row['sent_bytes']) / 1e9:.1f} GB{between}"


if __name__ == "__main__":
    main()
