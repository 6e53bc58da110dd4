"""Tuning the low-rank components alone against tuning all of the same cut model: loss, time and memory of SmolLM2-135M.

    scripts/bench welore_tune [--shares 0.3 0.5] [--steps 40]     # what the CSV lacks; rows as they come
    scripts/bench welore_tune --table

The cut is whitened on 16 rows of 512 tokens and takes `shares` of all ranks by the paper's threshold; only matrices
that lose half of theirs are cut (`train: lrc`). `lrc` trains their factors and the norms, `all` every weight of the cut
model. English text of any Python installation: after what calibrates, 1,024 tokens choose, 2,048 judge, the rest
trains: `steps` steps of two rows of 256 tokens, the same rows for both; AdamW, warm-up over a tenth, cosine to a tenth.
Each way has three rates with seed 0, the low-rank components one more, because their best one at 30 % stood at the
edge; the rate with the lowest perplexity on what chooses also has seeds 1 and 2. Seconds are those of the processor, of
whole steps, one thread; peaks are the tracker's. A cut is kept in `--work` for the next run.
"""

import argparse
import math
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from measurement import read_rows, write_rows
from torch import Tensor, nn

import featherweight as fw
from featherweight.methods.low_rank_model import low_rank_modules
from featherweight.models import load_model, load_tokenizer
from featherweight.text.compress import token_stream
from featherweight.text.perplexity import perplexity

NAME = "welore_tune"
CALIBRATES, CHOOSES, JUDGES, ROW, ROWS = 16 * 512, 1024, 2048, 256, 2
RATES = {"lrc": (3e-5, 1e-4, 3e-4, 1e-3), "all": (3e-5, 1e-4, 3e-4)}
SEEDS = (0, 1, 2)


def cut_model(share: float, calibrates: Tensor, work: Path) -> nn.Module:
    """Return the cut model, from its folder if it was cut before."""
    folder = work / f"cut-{share:g}"
    if not (folder / "config.json").exists():
        model = load_model("smollm2").eval()
        options = fw.WeLore(rank_reduction=share, method="whitened", train="lrc")
        fw.apply(model, options, list(calibrates.view(-1, 4, 512)))
        model.save_pretrained(folder)
    return fw.load_low_rank(folder)


def choose_trained(model: nn.Module, way: str) -> list[nn.Parameter]:
    """Let the factors and norms train, or every weight; return what does."""
    chosen: list[nn.Module] = list(low_rank_modules(model).values())
    chosen += [module for module in model.modules() if "norm" in type(module).__name__.lower()]
    inside = {id(parameter) for module in chosen for parameter in module.parameters()}
    for parameter in model.parameters():
        parameter.requires_grad_(way == "all" or id(parameter) in inside)
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def run(share: float, way: str, lr: float, seed: int, stream: Tensor, options: argparse.Namespace) -> dict[str, Any]:
    """Tune once and return the row."""
    calibrates, chooses, judges, trains = stream.split(
        [CALIBRATES, CHOOSES, JUDGES, len(stream) - CALIBRATES - CHOOSES - JUDGES]
    )
    model = cut_model(share, calibrates, options.work)
    before = perplexity(model, judges, window_tokens=1024)
    trained = choose_trained(model, way)
    optimizer = torch.optim.AdamW(trained, lr=lr, weight_decay=0.0)
    rows = trains[: len(trains) // ROW * ROW].view(-1, ROW)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[: options.steps * ROWS]
    seconds, peak = [], 0
    model.train()

    def step(number: int) -> None:
        warm = min(1.0, (number + 1) / max(1, options.steps // 10))
        for group in optimizer.param_groups:
            group["lr"] = lr * warm * (0.1 + 0.45 * (1 + math.cos(math.pi * number / options.steps)))
        batch = rows[order[ROWS * number : ROWS * number + ROWS]]
        model(batch, labels=batch, use_cache=False).loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    for number in range(options.steps):
        began = time.process_time()
        if number == 2:
            with fw.measure_memory(model, optimizer) as memory:
                step(number)
            peak = memory.peak_bytes
            continue
        step(number)
        seconds.append(time.process_time() - began)
    return {
        "share": share,
        "way": way,
        "lr": lr,
        "seed": seed,
        "steps": options.steps,
        "trained_parameters": sum(parameter.numel() for parameter in trained),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "perplexity_before": round(before, 4),
        "validation_perplexity": round(perplexity(model, chooses, window_tokens=1024), 4),
        "test_perplexity": round(perplexity(model, judges, window_tokens=1024), 4),
        "step_cpu_s": round(statistics.median(seconds), 3),
        "peak_mib": round(peak / 2**20, 1),
    }


def known(steps: int) -> list[dict[str, str]]:
    """Return the rows of the CSV with so many steps."""
    return [row for row in read_rows(NAME) if int(row["steps"]) == steps]


def chosen(share: float, way: str, steps: int) -> list[dict[str, str]]:
    """Return the runs at the rate that was chosen on seed 0, by seed."""
    mine = [row for row in known(steps) if (float(row["share"]), row["way"]) == (share, way)]
    first = min((r for r in mine if r["seed"] == "0"), key=lambda r: float(r["validation_perplexity"]), default=None)
    return [row for row in mine if first is not None and row["lr"] == first["lr"]]


def table(steps: int) -> None:
    """Print both ways at each share."""
    print("| ranks gone | trained | parameters | rate | perplexity before | after, by seed | mean | s a step | peak |")
    print("|---" * 9 + "|")
    for share in sorted({float(row["share"]) for row in known(steps)}):
        for way in RATES:
            runs = chosen(share, way, steps)
            if not runs:
                continue
            found = [float(row["test_perplexity"]) for row in runs]
            error = f" ± {statistics.stdev(found) / len(found) ** 0.5:.2f}" if len(found) > 1 else ""
            cells = [f"{share:.0%}", way, f"{int(runs[0]['trained_parameters']):,}", runs[0]["lr"]]
            cells += [f"{float(runs[0]['perplexity_before']):,.1f}", " / ".join(f"{one:.2f}" for one in found)]
            cells += [f"{statistics.mean(found):.2f}{error}"]
            cells += [
                f"{statistics.median(float(row['step_cpu_s']) for row in runs):.2f}",
                f"{runs[0]['peak_mib']} MiB",
            ]
            print("| " + " | ".join(cells) + " |")


def main() -> None:
    """Run what the CSV lacks, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.3, 0.5])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--work", type=Path, default=Path("runs/welore_tune"))
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    if options.table:
        table(options.steps)
        return
    torch.set_num_threads(1)
    stream = token_stream("english", load_tokenizer("smollm2"), CALIBRATES + CHOOSES + JUDGES + 120 * ROW)
    for share in options.shares:
        for way, rates in RATES.items():
            wanted = [(lr, SEEDS[0]) for lr in rates] + [(None, seed) for seed in SEEDS[1:]]
            for lr, seed in wanted:
                rate = lr if lr is not None else float(chosen(share, way, options.steps)[0]["lr"])
                key = (share, way, rate, seed)
                there = known(options.steps)
                if any((float(r["share"]), r["way"], float(r["lr"]), int(r["seed"])) == key for r in there):
                    continue
                row = run(share, way, rate, seed, stream, options)
                print(row, flush=True)
                write_rows(NAME, [row])
    table(options.steps)


if __name__ == "__main__":
    main()
