"""What can be trained on which card? The planner's answer for models of 135M to 70B and cards of 8 to 80 GiB.

    scripts/bench plan [--models llama-3-8b ...] [--cards 8GiB 24GiB ...]     # one row for each pair
    scripts/bench plan --table                                               # the table from the CSV

The most faithful recipe of each pair, one row of 2048 tokens a step; bytes are simulated, times come from data sheets
and rank recipes only. Nothing here runs on a GPU. `search_s` is time of the processor.
"""

import argparse
import csv
import resource
import time

from measurement import RESULTS, write_rows

from featherweight.planner import plan

MODELS = ("smollm2-135m", "llama-3.2-1b", "llama-3.2-3b", "llama-3-8b", "llama-2-13b", "llama-2-70b")
CARDS = {"8GiB": "RTX 4060", "12GiB": "RTX 4070", "16GiB": "RTX 4080", "24GiB": "RTX 4090", "80GiB": "H100"}
SEQ_LEN, TOKENS = 2048, 2048
GIB = 2**30


def main() -> None:
    """Plan each pair and write its rows at once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--cards", nargs="+", default=list(CARDS))
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    if options.table:
        table()
        return
    for model in options.models:
        for budget in options.cards:
            run(model, budget)


def run(model: str, budget: str) -> None:
    """Plan one pair."""
    started = time.process_time()
    found = plan(model, budget, device=CARDS.get(budget), seq_len=SEQ_LEN, tokens_per_step=TOKENS, limit=1)
    seconds = time.process_time() - started
    shared = {
        "model": model,
        "budget": budget,
        "search_s": round(seconds, 1),
        "process_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }
    rows = [
        {
            **shared,
            "family": row.family,
            "keeping": row.keeping,
            "rows_at_once": row.recipe.micro_batch_size,
            "gives_up": " ".join(row.tags),
            "allocated_gib": round(row.need.allocated_bytes / GIB, 2),
            "total_gib": round(row.need.total_bytes / GIB, 2),
            "tokens_per_s": round(row.tokens_per_s),
        }
        for row in found.rows
    ]
    nothing = {"family": "", "keeping": "", "rows_at_once": "", "gives_up": "", "allocated_gib": "", "total_gib": ""}
    write_rows("plan", rows or [{**shared, **nothing, "tokens_per_s": ""}])
    print(model, budget, f"{seconds:.0f} s", found.rows[0].family if found.rows else "nothing fits", flush=True)


def table() -> None:
    """Print the most faithful recipe of each pair, and what it needs."""
    best: dict[tuple[str, str], dict[str, str]] = {}
    with open(RESULTS / "plan.csv", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            best.setdefault((row["model"], row["budget"]), row)
    print("| model |", " | ".join(CARDS), "|")
    print("|---|" + "---|" * len(CARDS))
    for model in MODELS:
        cells = []
        for budget in CARDS:
            row = best.get((model, budget))
            if row is None or not row["family"]:
                cells.append("-" if row else "")
            else:
                cells.append(f"{row['family']}; {row['keeping']}; {float(row['total_gib']):.1f} GiB")
        print(f"| {model} |", " | ".join(cells), "|")


if __name__ == "__main__":
    main()
