"""What cutting each kind of matrix of SmolLM2-135M costs, the cut that a perplexity allows, and cuts without data.

    scripts/bench welore_search                # all of it: about eight minutes of one core
    scripts/bench welore_search --table        # the tables of docs/welore.md from results/welore_search.csv

English text of any Python installation (`english`): its first 1,024 tokens judge, the next 1,024 choose, 16 rows of 512
calibrate; windows of 512 tokens. `kind`: one kind cut alone, whitened; `whole`: cuts that the search has measured for
1.1 times the perplexity; `floor`: every matrix without data at the rank that keeps a share of its energy, judged.
"""

import argparse
import csv
import math
from typing import Any

import torch
from measurement import RESULTS, write_rows

import featherweight as fw
from featherweight.linalg.spectrum import explained_rank, reduction
from featherweight.methods.welore.plan import find_targets
from featherweight.methods.welore.search import Cutter, find_cut
from featherweight.models.load import load_model, load_tokenizer
from featherweight.text.compress import token_stream
from featherweight.text.perplexity import perplexity

NAME = "welore_search"
FLOORS = (0.995, 0.999, 0.9995, 0.9999)
WINDOW, LIMIT = 512, 1.1


def row(what: str, kind: str, share: float, ranks_gone: float, found: float, before: float) -> dict[str, Any]:
    """Return one line of the CSV."""
    return {
        "what": what,
        "kind": kind,
        "share": round(share, 6),
        "ranks_gone": round(ranks_gone, 4),
        "perplexity": round(found, 4),
        "perplexity_before": round(before, 4),
    }


def floors(model: torch.nn.Module, judges: torch.Tensor) -> list[dict[str, Any]]:
    """Cut without data at floors of energy."""
    cutter = Cutter(model, find_targets(model, fw.WeLore())[0], fw.WeLore(), None)
    full = {name: len(values) for name, values in cutter.spectra.items()}
    before, rows = perplexity(model, judges, window_tokens=WINDOW), []
    for floor in FLOORS:
        ranks = {name: explained_rank(values, floor) for name, values in cutter.spectra.items()}
        found = cutter.loss_of(ranks, lambda one: perplexity(one, judges, window_tokens=WINDOW))
        rows.append(row("floor", "all", floor, reduction(ranks, full), found, before))
    return rows


def search(model: torch.nn.Module, chooses: torch.Tensor, calibrates: torch.Tensor) -> list[dict[str, Any]]:
    """Find the cut for 1.1 times the perplexity, and apply it."""

    def measure(one: torch.nn.Module) -> float:
        return math.log(perplexity(one, chooses, window_tokens=WINDOW))

    batches = calibrates[: len(calibrates) // WINDOW * WINDOW].view(-1, WINDOW).split(8)
    found = find_cut(model, fw.WeLore(method="whitened"), measure, math.log(LIMIT), batches)
    before = math.exp(found.loss_before)
    rows = [
        row("kind", kind, share, share, before * math.exp(cost), before)
        for kind, (shares, costs) in found.curves.items()
        for share, cost in zip(shares[1:], costs[1:], strict=True)
    ]
    facts: Any = fw.apply(model, found.options, batches).section("Totals")
    gone, kept = facts.facts["rank reduction"], facts.facts["bytes kept"]
    return [*rows, row("whole", "applied", kept, gone, math.exp(measure(model)), before)]


def table() -> None:
    """Print what stands in the CSV."""
    print("| what | kind | share | ranks gone | perplexity | times that before |")
    print("|---" * 6 + "|")
    for one in csv.DictReader((RESULTS / f"{NAME}.csv").open()):
        factor = float(one["perplexity"]) / float(one["perplexity_before"])
        cells = [one["what"], one["kind"], one["share"], f"{float(one['ranks_gone']):.1%}", one["perplexity"]]
        print("| " + " | ".join([*cells, f"{factor:.3f}"]) + " |")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--table", action="store_true")
    if parser.parse_args().table:
        table()
        return
    torch.set_num_threads(1)
    tokenizer = load_tokenizer("smollm2")
    stream = token_stream("english", tokenizer, 2048 + 16 * WINDOW)
    model = load_model("smollm2", tokenizer=tokenizer).eval()
    write_rows(NAME, floors(model, stream[:1024]))
    write_rows(NAME, search(model, stream[1024:2048], stream[2048:]))
    table()


if __name__ == "__main__":
    main()
