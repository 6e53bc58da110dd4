"""What fine-tuning forgets at equal held-out loss, and what it learns for other tasks: curves over learning rates.

    scripts/bench s2ft_forgetting --data FOLDER                  # what the CSV lacks, as it comes; hours of a core
    scripts/bench s2ft_forgetting --data FOLDER --judge          # accuracy of the chosen rates on all three tasks
    scripts/bench s2ft_forgetting --table

SmolLM2-135M is trained on 600 questions of one task (ARC-Easy as cloze) in 100 steps of 6. Every method has five rates,
each with three seeds; a row says the loss on 60 other training questions and the KL divergence from the model before,
on 512 tokens of Python's documentation. `--table` reads the KL off each method's curve at equal losses and draws the
curves. `--judge` takes the rate of least loss of seed 0, trains again and measures accuracy on 1,000 test questions of
ARC-Easy, BoolQ and OpenBookQA, of which two were never trained on. FOLDER is that of LLM-Adapters' data:
ARC-Easy/train.json, ...
S2FT, LoRA, DoRA and SHiRA change the same matrices (o_proj, down_proj) with equal numbers of parameters; `both axes`
changes columns of these and rows of v_proj and up_proj with 0.96 times as many.
"""

import argparse
import copy
import math
import random
import statistics
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from bench_s2ft_learning import (
    NAMES,
    TARGETS,
    adapted,
    autocast,
    batches_of,
    held_out_loss,
    neutral_rows,
    questions,
    train,
)
from measurement import read_rows, write_rows
from torch import Tensor, nn

import featherweight as fw
from featherweight.models import load_model, load_tokenizer
from featherweight.optim import GaLoreAdamW, param_groups
from featherweight.optim.group_rates import scale_embedding_lr
from featherweight.text.forgetting import measure_forgetting
from featherweight.text.instructions import as_cloze, load_instructions
from featherweight.text.multiple_choice import evaluate_multiple_choice

NAME, JUDGED = "s2ft_forgetting", "s2ft_forgetting_judged"
PICTURE = Path(__file__).parents[1] / "docs/images/s2ft_forgetting.svg"
TASK, TASKS = "ARC-Easy", ("ARC-Easy", "boolq", "openbookqa")
STEPS, BATCH, HELD_OUT, SEEDS = 100, 6, 60, (0, 1, 2)
S2FT_RATES, LORA_RATES = (1.25e-3, 2.5e-3, 5e-3, 1e-2, 2e-2), (3.75e-4, 7.5e-4, 1.5e-3, 3e-3, 6e-3)
RATES: dict[str, tuple[float, ...]] = {
    "s2ft": S2FT_RATES,
    "lora": LORA_RATES,
    "shira": S2FT_RATES,
    "dora": LORA_RATES,
    "s2ft activation, smallest": (2.5e-3, 5e-3, 1e-2, 2e-2, 4e-2),
    "s2ft gradient, largest": S2FT_RATES,
    "s2ft both axes": S2FT_RATES,
    "full": (2e-5, 4e-5, 8e-5, 1.7e-4, 3.4e-4),
    "galore": (1.9e-4, 3.75e-4, 7.5e-4, 1.5e-3, 3e-3),
    "galore one rate": (1.9e-4, 3.75e-4, 7.5e-4, 1.5e-3, 3e-3),
}
LABELS = NAMES | {
    "dora": "DoRA",
    "s2ft activation, smallest": "S2FT, smallest activations",
    "s2ft gradient, largest": "S2FT, largest gradients",
    "s2ft both axes": "S2FT, rows and columns",
    "galore": "GaLore",
    "galore one rate": "GaLore, embeddings at the matrices' rate",
}
BASE = "before training"
GALORE, GALORE_SCALE = ("galore", "galore one rate"), 0.25
AXES = {"o_proj": "input", "down_proj": "input", "v_proj": "output", "up_proj": "output"}
Batches = list[dict[str, Tensor]]
Point = tuple[float, float, float]


def changed(method: str, model: nn.Module, batches: Batches) -> nn.Module:
    """Return the model of a method; only what it trains requires gradients."""
    import peft

    if method in GALORE:
        return model
    if method == "dora":
        options = {"r": 8, "lora_alpha": 16, "target_modules": TARGETS, "use_dora": True}
        return peft.get_peft_model(model, peft.LoraConfig(**options))
    if method == "s2ft both axes":
        return peft.get_peft_model(
            model, fw.S2FTConfig(r_equivalent=4, multiple_of=1, target_modules=list(AXES), axis_pattern=AXES)
        )
    if not method.startswith("s2ft "):
        return adapted(method, model)
    selection, select = method.removeprefix("s2ft ").split(", ")
    chosen: dict[str, Any] = {"selection": selection, "select": select, "r_equivalent": 8, "multiple_of": 1}
    return peft.get_peft_model(model, fw.s2ft.select(model, batches[:8], fw.S2FTConfig(**chosen)))


def galore(method: str, model: nn.Module, lr: float) -> GaLoreAdamW:
    """Return GaLore's optimizer; its matrices move at `GALORE_SCALE` times the rate, and embeddings too if so named."""
    groups = param_groups(model, rank=64, update_proj_gap=50, scale=GALORE_SCALE)
    if method == "galore one rate":
        groups = scale_embedding_lr(groups, model, lr, GALORE_SCALE)
    return GaLoreAdamW(groups, lr=lr)


def measured(model: nn.Module, pretrained: nn.Module, folder: Path) -> dict[str, Any]:
    """Return the loss on held-out questions and what was forgotten."""
    tokenizer = load_tokenizer("smollm2")
    checked = sorted(questions(folder, "train", TASK)[:HELD_OUT], key=lambda one: len(one.instruction))
    loss = held_out_loss(model, batches_of(checked, tokenizer, BATCH))
    with torch.autocast("cpu", torch.bfloat16):
        forgotten = measure_forgetting(model, pretrained, neutral_rows(tokenizer, 4, 128))
    return {
        "held_out_loss": round(loss, 4),
        "kl": round(forgotten["kl"], 4),
        "perplexity": round(forgotten["perplexity"], 3),
    }


def trained(method: str, lr: float, seed: int, pretrained: nn.Module, folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    """Fine-tune a copy of the model; return it and its row."""
    torch.manual_seed(seed)
    training = questions(folder, "train", TASK)[HELD_OUT:]
    random.Random(seed).shuffle(training)
    steps = batches_of(training[: STEPS * BATCH], load_tokenizer("smollm2"), BATCH)
    model = copy.deepcopy(pretrained)
    if method not in ("full", *GALORE):
        model.to(torch.bfloat16)
    model = changed(method, model, steps)
    step_s, peak = train(model, steps, lr, galore(method, model, lr) if method in GALORE else None)
    return model, {
        "method": method,
        "lr": lr,
        "seed": seed,
        "trained_parameters": sum(one.numel() for one in model.parameters() if one.requires_grad),
        **measured(model, pretrained, folder),
        "step_s": round(step_s, 3),
        "peak_mib": round(peak / 2**20, 1),
    }


def accuracies(model: nn.Module, options: argparse.Namespace) -> dict[str, Any]:
    """Return the accuracy on the test questions of all tasks; those with options of their own words are cloze."""
    tokenizer, found = load_tokenizer("smollm2"), {}
    for task in TASKS:
        asked = load_instructions(options.data / task / "test.json")[: options.questions]
        with autocast(model):
            values = evaluate_multiple_choice(model, tokenizer, [as_cloze(one) or one for one in asked])
        found[f"{task}_accuracy"] = round(values["accuracy"], 4)
        found[f"{task}_questions"] = int(values["questions"])
    return found


def judge(method: str, lr: float, seed: int, pretrained: nn.Module, options: argparse.Namespace) -> None:
    """Train once more and measure accuracy; the row of a run that the curves lack goes there too."""
    model, row = trained(method, lr, seed, pretrained, options.data)
    if not is_known(NAME, method, lr, seed):
        write_rows(NAME, [row])
    write_rows(JUDGED, [row | accuracies(model, options)])


def judge_base(pretrained: nn.Module, options: argparse.Namespace) -> None:
    """Measure the model before any training."""
    row = {"method": BASE, "lr": 0.0, "seed": 0, "trained_parameters": 0}
    row |= measured(pretrained, pretrained, options.data) | {"step_s": 0.0, "peak_mib": 0.0}
    write_rows(JUDGED, [row | accuracies(pretrained, options)])


def is_known(name: str, method: str, lr: float, seed: int) -> bool:
    """Tell whether a run stands in a CSV."""
    return any((row["method"], float(row["lr"]), int(row["seed"])) == (method, lr, seed) for row in read_rows(name))


def curve(method: str, seeds: Collection[int]) -> list[Point]:
    """Return each rate's (held-out loss, KL, rate), means over the seeds; only of rates that all have."""
    rows = [row for row in read_rows(NAME) if row["method"] == method and int(row["seed"]) in seeds]
    found = []
    for lr in sorted({float(row["lr"]) for row in rows}):
        mine = [row for row in rows if float(row["lr"]) == lr]
        if len(mine) == len(seeds):
            loss, kl = (statistics.mean(float(row[key]) for row in mine) for key in ("held_out_loss", "kl"))
            found.append((loss, kl, lr))
    return found


def kl_at(points: list[Point], loss: float) -> float:
    """Return the KL where a curve first comes down to a loss, in the logarithm between its rates; NaN if nowhere."""
    for (high, kl_high, *_), (low, kl_low, *_) in zip(points, points[1:], strict=False):
        if high >= loss >= low and high > low:
            share = (high - loss) / (high - low)
            return math.exp((1 - share) * math.log(kl_high) + share * math.log(kl_low))
    return math.nan


def table(seeds: Collection[int], losses: Collection[float]) -> None:
    """Print each method's KL at losses that several reach, and its best rate; only rates that all seeds have."""
    curves = {method: curve(method, seeds) for method in RATES if len(curve(method, seeds)) > 1}
    if not curves:
        raise SystemExit(
            f"bench s2ft_forgetting: results/{NAME}.csv has no two rates of one method that all of seeds="
            f"{list(seeds)} have. Choose others with --seeds, or run what is missing without --table."
        )
    heads = ["method", "trained", *(f"KL at a loss of {loss:.2f}" for loss in losses)]
    heads += ["least loss", "its KL", "its rate", "peak (MiB)"]
    print("| " + " | ".join(heads) + " |")
    print("|---" * len(heads) + "|")
    for method, points in curves.items():
        row = next(row for row in read_rows(NAME) if row["method"] == method)
        at_losses = [kl_at(points, loss) for loss in losses]
        least, kl, lr = min(points)
        cells = [
            LABELS[method],
            f"{int(row['trained_parameters']):,}",
            *("" if math.isnan(x) else f"{x:.3f}" for x in at_losses),
        ]
        print("| " + " | ".join([*cells, f"{least:.3f}", f"{kl:.3f}", f"{lr:g}", row["peak_mib"]]) + " |")


def judged_table() -> None:
    """Print accuracy at each method's chosen rate: mean over all its seeds and standard error among them."""
    rows = read_rows(JUDGED)
    print("| method | rate | seeds | KL | " + " | ".join(f"{task} (%)" for task in TASKS) + " |")
    print("|---" * (4 + len(TASKS)) + "|")
    for method in (BASE, *RATES):
        mine = [row for row in rows if row["method"] == method]
        if not mine:
            continue
        cells = [LABELS.get(method, method), f"{float(mine[0]['lr']):g}", str(len(mine))]
        cells.append(f"{statistics.mean(float(row['kl']) for row in mine):.3f}")
        for task in TASKS:
            found = [100 * float(row[f"{task}_accuracy"]) for row in mine]
            error = statistics.stdev(found) / math.sqrt(len(found)) if len(found) > 1 else math.nan
            cells.append(f"{statistics.mean(found):.1f}" + ("" if math.isnan(error) else f" ± {error:.1f}"))
        print("| " + " | ".join(cells) + " |")


def draw(seeds: Collection[int]) -> None:
    """Draw KL over held-out loss, a line for each method and a point for each rate."""
    import matplotlib
    from matplotlib.figure import Figure

    from featherweight.report.pictures import settings

    with matplotlib.rc_context(settings(NAME)):
        figure = Figure(figsize=(11, 5), layout="constrained")
        axes = figure.add_subplot()
        for method, style in zip(RATES, ("o-", "s-", "D-", "^-", "v-", "P-", "X-", "*--", "h--", "p--"), strict=True):
            if len(points := curve(method, seeds)) > 1:
                axes.plot(
                    [one[0] for one in points], [one[1] for one in points], style, markersize=5, label=LABELS[method]
                )
        axes.set_xlim(2.15, 2.6)
        axes.set_ylim(0.005, 2)
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.set_xlabel("held-out loss (nats/token)")
        axes.set_ylabel("KL to the model before")
        axes.grid()
        figure.legend(loc="outside right upper")
        figure.savefig(PICTURE, metadata={"Date": None})


def main() -> None:
    """Run what the CSVs lack, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--methods", nargs="+", default=list(RATES), choices=list(RATES))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--questions", type=int, default=1000)
    parser.add_argument("--losses", type=float, nargs="+", default=[2.3, 2.27], help="of the table")
    parser.add_argument("--judge", action="store_true")
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    if options.table:
        judged_table()
        table(options.seeds, options.losses)
        draw(options.seeds)
        return
    if options.data is None:
        parser.error("--data is missing; give the folder that holds ARC-Easy/train.json and test.json")
    pretrained = load_model("smollm2")
    if options.judge and not is_known(JUDGED, BASE, 0.0, 0):
        judge_base(pretrained, options)
    for seed in options.seeds:
        for method in options.methods:
            if options.judge:
                lr = min(curve(method, SEEDS[:1]))[2]
                if not is_known(JUDGED, method, lr, seed):
                    judge(method, lr, seed, pretrained, options)
                continue
            for lr in RATES[method]:
                if not is_known(NAME, method, lr, seed):
                    _, row = trained(method, lr, seed, pretrained, options.data)
                    print(row, flush=True)
                    write_rows(NAME, [row])
    table(options.seeds, options.losses)


if __name__ == "__main__":
    main()
