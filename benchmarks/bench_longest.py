"""How long may one row be? By recipe and card, all of it simulated: nothing here runs on a GPU.

    scripts/bench longest [--models llama-3-8b] [--recipes ...] [--cards 24GB ...]   # rows in the CSV are skipped
    scripts/bench longest --table                                                    # the table of docs/mst.md
    scripts/bench longest --plot                                                     # docs/images/longest_rows.png

What `fw plan --solve max_seq_len` answers, in multiples of 4096 tokens: one row a step, every layer in chunks of tokens
and recomputed, its input on the host (MsT with `tokenwise` and `checkpoint: offload`), positions as far as the row
goes. A row fits if its step does with the margin that the planner leaves free, allocator, workspaces and context
included. Host: the inputs of all layers. One simulation of a length serves all cards.
"""

import argparse
from typing import Any

from measurement import read_rows, write_rows

from featherweight.planner import Target, need_of
from featherweight.planner.candidates import ACTIVATION_STRATEGIES, family_called, recipe_of
from featherweight.planner.plan import base_recipe
from featherweight.planner.solve import largest_within
from featherweight.training.estimate import MemoryEstimate, estimate_memory

NAME = "longest"
GIB = 2**30
CARDS = {
    "8GB": "8 GB",
    "12GB": "12 GB",
    "16GB": "16 GB",
    "24GB": "24 GB",
    "48GB": "48 GB",
    "80GB": "80 GB",
    "141GB": "141 GB",
}
STEP, LIMIT = 4096, 2**22
RECIPES = (
    "AdamW 8-bit, layer-wise",
    "GaLore 8-bit, rank 1/4",
    "Q-GaLore, rank 1/4",
    "Q-GaLore, rank 1/16, 4-bit, int8 embeddings",
    "LoRA, rank 16, 4-bit weights",
)
MODELS = {"llama-3-8b": {"layers": 32, "hidden": 4096}, "llama-3.2-1b": {"layers": 16, "hidden": 2048}}
OFFLOADED = ACTIVATION_STRATEGIES[-1]


class Rows:
    """Rows of one recipe; each length is simulated once."""

    def __init__(self, model: str, name: str) -> None:
        base = base_recipe(model, None, 1024).override([f"task.max_positions={LIMIT}"])
        self.recipe = recipe_of(base, family_called(name), OFFLOADED, is_pretrained=True)
        self.model, self.name = model, name
        self.simulated: dict[int, MemoryEstimate] = {}

    def bytes_at(self, tokens: int, target: Target) -> int:
        """Return what a row takes of a card."""
        if tokens not in self.simulated:
            recipe = self.recipe.override([f"task.seq_len={tokens}"])
            self.simulated[tokens] = estimate_memory(None, recipe, device=target.device)
        return need_of(self.simulated[tokens], target).total_bytes

    def longest(self, card: str) -> dict[str, Any]:
        """Return the longest row on one card; 0 tokens where not even the shortest fits."""
        target = Target.of(card, "cuda")
        found = largest_within(lambda tokens: self.bytes_at(tokens, target), target.usable_bytes, STEP, LIMIT, STEP)
        row = {"model": self.model, "recipe": self.name, "card": card}
        if found is None:
            return {**row, "tokens": 0, "device_gib": "", "host_gib": ""}
        shape = MODELS[self.model]
        host_bytes = 2 * shape["layers"] * shape["hidden"] * found
        device_gib = round(self.bytes_at(found, target) / GIB, 2)
        return {**row, "tokens": found, "device_gib": device_gib, "host_gib": round(host_bytes / GIB, 1)}


def print_table() -> None:
    """Print tokens by recipe and card, with the host memory in brackets."""
    for model in MODELS:
        rows = [row for row in read_rows(NAME) if row["model"] == model]
        if not rows:
            continue
        print(f"| {model} | " + " | ".join(CARDS.values()) + " |")
        print("|---" * (1 + len(CARDS)) + "|")
        for name in RECIPES:
            own = {row["card"]: row for row in rows if row["recipe"] == name}
            cells = [
                "" if card not in own else "no" if own[card]["tokens"] == "0" else _cell(own[card]) for card in CARDS
            ]
            print(f"| {name} | " + " | ".join(cells) + " |")


def _cell(row: dict[str, str]) -> str:
    return f"{int(row['tokens']):,} ({row['host_gib']})"


def plot() -> None:
    """Draw the longest rows of the CSV."""
    from line_picture import save_lines

    model = next(iter(MODELS))
    mine = [row for row in read_rows(NAME) if row["model"] == model and row["tokens"] != "0"]
    lines = {name: [(size_of(r["card"]), int(r["tokens"])) for r in mine if r["recipe"] == name] for name in RECIPES}
    print(
        save_lines(
            "longest_rows",
            f"{model}: the longest row that trains, by simulation",
            {name: points for name, points in lines.items() if points},
            labels=("card", "tokens of one row"),
            y_ticks=[2**power for power in range(13, 21)],
            x_ticks={size_of(card): words for card, words in CARDS.items()},
        )
    )


def size_of(card: str) -> int:
    """Return the GB of a card."""
    return int(card.removesuffix("GB"))


def main() -> None:
    """Simulate what the CSV lacks, print the table or draw it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["llama-3-8b"], choices=list(MODELS))
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), choices=RECIPES)
    parser.add_argument("--cards", nargs="+", default=list(CARDS), choices=list(CARDS))
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--plot", action="store_true")
    options = parser.parse_args()
    if options.table:
        print_table()
        return
    if options.plot:
        plot()
        return
    for model in options.models:
        for name in options.recipes:
            rows = Rows(model, name)
            for card in options.cards:
                if (model, name, card) in [(row["model"], row["recipe"], row["card"]) for row in read_rows(NAME)]:
                    continue
                found = rows.longest(card)
                print(found, len(rows.simulated), flush=True)
                write_rows(NAME, [found])


if __name__ == "__main__":
    main()
