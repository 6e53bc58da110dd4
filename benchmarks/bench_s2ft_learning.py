"""Fine-tuning of a real model: S2FT against LoRA, SHiRA and full fine-tuning, at equal numbers of trained parameters.

    scripts/bench s2ft_learning --data FOLDER [--runs s2ft:3e-3 lora:3e-3 ...] [--seed 0] [--steps 24] [--final]
    scripts/bench s2ft_learning --data FOLDER --runs base:0 --final     (the model before training)
    scripts/bench s2ft_learning --table                                 (the table of the rows, and the picture)

SmolLM2-135M (weights dequantised from 4 bits), ARC-Easy of LLM-Adapters as cloze: the question, then the text of
the right option. FOLDER holds ARC-Easy/train.json and test.json. Each run writes one row: loss on 36
held-out training questions, and with --final accuracy on test questions and forgetting on neutral text.
LoRA, SHiRA and S2FT change the same matrices (o_proj, down_proj); AdamW without decay, linear warm-up over 10 % and
decay to zero, gradients clipped to 1. Adapters are float32 beside a bfloat16 base; full fine-tuning has float32 weights
under bfloat16 autocast.
"""

import argparse
import copy
import csv
import pydoc_data.topics
import random
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from measurement import RESULTS, machine, write_rows
from torch import nn

import featherweight as fw
from featherweight.models import load_model, load_tokenizer
from featherweight.text.forgetting import measure_forgetting
from featherweight.text.instructions import Instruction, as_cloze, encode_instruction, load_instructions, pad_batch
from featherweight.text.multiple_choice import evaluate_multiple_choice

TARGETS = ["o_proj", "down_proj"]
HELD_OUT = 36
NAMES = {"base": "before training", "s2ft": "S2FT", "shira": "SHiRA", "lora": "LoRA", "full": "all weights"}
PICTURE = Path(__file__).parents[1] / "docs/images/s2ft_learning.svg"


def adapted(name: str, model: nn.Module) -> nn.Module:
    """Return the model of a method; only what it trains requires gradients."""
    import peft

    if name in ("full", "base"):
        return model
    configs = {
        "s2ft": lambda: fw.S2FTConfig(r_equivalent=8, multiple_of=1),
        "s2ft in place": lambda: fw.S2FTConfig(r_equivalent=8, multiple_of=1, update="inplace"),
        "lora": lambda: peft.LoraConfig(r=8, lora_alpha=16, target_modules=TARGETS),
        "shira": lambda: peft.ShiraConfig(r=8, target_modules=TARGETS, random_seed=0),
    }
    return peft.get_peft_model(model, configs[name]())


def questions(folder: Path, split: str, task: str = "ARC-Easy") -> list[Instruction]:
    """Return the cloze questions of a split."""
    found = (as_cloze(one) for one in load_instructions(folder / task / f"{split}.json"))
    return [one for one in found if one is not None]


def batches_of(chosen: list[Instruction], tokenizer: Any, batch: int) -> list[dict[str, torch.Tensor]]:
    """Return questions in batches, padded."""
    encoded = [encode_instruction(one, tokenizer, max_tokens=96) for one in chosen]
    parts = [encoded[at : at + batch] for at in range(0, len(encoded), batch)]
    return [pad_batch(part, tokenizer.eos_token_id) for part in parts]


def autocast(model: nn.Module) -> Any:
    """Let matrix products of a float32 model run in bfloat16."""
    return torch.autocast("cpu", torch.bfloat16, enabled=next(model.parameters()).dtype == torch.float32)


def held_out_loss(model: nn.Module, batches: list[dict[str, torch.Tensor]]) -> float:
    """Return the mean loss of the response tokens."""
    model.eval()
    total = tokens = 0.0
    with torch.no_grad(), autocast(model):
        for batch in batches:
            count = int((batch["labels"][:, 1:] != -100).sum())
            total += float(model(**batch, use_cache=False).loss) * count
            tokens += count
    model.train()
    return total / tokens


def train(
    model: nn.Module,
    batches: list[dict[str, torch.Tensor]],
    lr: float,
    optimizer: torch.optim.Optimizer | None = None,
) -> tuple[float, int]:
    """Make one step for each batch, by AdamW if nothing else is given.

    Returns:
        The median seconds of a step, and the tracker's peak in one.
    """
    trained = [one for one in model.parameters() if one.requires_grad]
    if optimizer is None:
        optimizer = torch.optim.AdamW(trained, lr=lr, weight_decay=0.0)
    warm_up = max(1, len(batches) // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm_up, (len(batches) - step) / max(1, len(batches) - warm_up))
    )
    seconds, peak = [], 0
    model.train()

    def step(batch: dict[str, torch.Tensor]) -> None:
        with autocast(model):
            loss = model(**batch, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    for number, batch in enumerate(batches):
        start = time.perf_counter()
        if number == 2:
            with fw.measure_memory(model, optimizer) as memory:
                step(batch)
            peak = memory.peak_bytes
        else:
            step(batch)
            seconds.append(time.perf_counter() - start)
        schedule.step()
    return statistics.median(seconds), peak


def neutral_rows(tokenizer: Any, count: int, length: int) -> list[torch.Tensor]:
    """Return rows of Python's documentation, which any machine has."""
    text = "\n".join(pydoc_data.topics.topics[key] for key in sorted(pydoc_data.topics.topics))
    ids = torch.tensor(tokenizer(text)["input_ids"][: count * length])
    return list(ids.view(count, length))


def run(method: str, lr: float, pretrained: nn.Module, tokenizer: Any, options: argparse.Namespace) -> dict[str, Any]:
    """Fine-tune a copy of the model and return a row of results."""
    torch.manual_seed(options.seed)
    training = questions(options.data, "train")
    held_out, training = training[:HELD_OUT], training[HELD_OUT:]
    random.Random(options.seed).shuffle(training)
    model = copy.deepcopy(pretrained)
    if method != "full":
        model.to(torch.bfloat16)
    model = adapted(method, model)
    steps = batches_of(training[: options.steps * options.batch], tokenizer, options.batch)
    checks = batches_of(sorted(held_out, key=lambda one: len(one.instruction)), tokenizer, options.batch)
    if method == "base":
        model.requires_grad_(False)
        steps = []
    step_s, peak = train(model, steps, lr) if steps else (None, None)
    row: dict[str, Any] = {
        "method": method,
        "lr": lr,
        "seed": options.seed,
        "steps": len(steps),
        "examples": len(steps) * options.batch,
        "trained_parameters": sum(one.numel() for one in model.parameters() if one.requires_grad),
        "held_out_loss": round(held_out_loss(model, checks), 4),
        "step_s": None if step_s is None else round(step_s, 3),
        "peak_mib": None if peak is None else round(peak / 2**20, 1),
        "accuracy": None,
        "kl": None,
        "perplexity": None,
    }
    if options.final:
        chosen = questions(options.data, "test")[: options.questions]
        with autocast(model):
            row["accuracy"] = round(evaluate_multiple_choice(model, tokenizer, chosen)["accuracy"], 4)
        with torch.autocast("cpu", torch.bfloat16):
            forgotten = measure_forgetting(model, pretrained, neutral_rows(tokenizer, 4, 128))
        row.update({name: round(forgotten[name], 4) for name in ("kl", "perplexity")})
    return row


# ---- table and picture


def table() -> None:
    """Print the table of the final rows as Markdown, and draw the losses of the swept rates."""
    rows = list(csv.DictReader((RESULTS / "s2ft_learning.csv").open()))
    swept = {name: sweep(rows, name) for name in NAMES}
    print("| | trained | lr | held-out loss | accuracy (%) | KL | perplexity | peak (MiB) | s/step |")
    print("|---" * 9 + "|")
    for name, label in NAMES.items():
        finished = [row for row in rows if row["method"] == name and row["accuracy"]]
        for lr in sorted({float(row["lr"]) for row in finished}, key=lambda lr: swept[name].get(lr, 0.0)):
            final = [row for row in finished if float(row["lr"]) == lr]
            print("| " + " | ".join([label, *cells(final, swept[name])]) + " |")
    draw({NAMES[name]: losses for name, losses in swept.items() if losses})


def sweep(rows: list[dict[str, str]], method: str) -> dict[float, float]:
    """Return the held-out loss at each rate of the sweep, by rate."""
    found = {float(row["lr"]): float(row["held_out_loss"]) for row in rows if is_swept(row, method)}
    return dict(sorted(found.items()))


def is_swept(row: dict[str, str], method: str) -> bool:
    """Tell whether a row is one of the sweep, which has no accuracy."""
    return row["method"] == method and not row["accuracy"]


def cells(final: list[dict[str, str]], swept: dict[float, float]) -> list[str]:
    """Return the cells of a method at one rate: its place in the grid, means and halves of the range of the seeds."""
    lr, rates = float(final[0]["lr"]), list(swept)
    place = ""
    if rates:
        where = "inside" if rates[0] < lr < rates[-1] else "edge of"
        rank = "best" if swept[lr] == min(swept.values()) else "not best"
        place = f"{lr:g} ({rank}, {where} {rates[0]:g} to {rates[-1]:g})"

    def figure(key: str, digits: int, factor: float = 1.0) -> str:
        values = [factor * float(row[key]) for row in final if row[key]]
        spread = f" ± {(max(values) - min(values)) / 2:.{digits}f}" if len(values) > 1 else ""
        return f"{statistics.mean(values):.{digits}f}{spread}" if values else ""

    first = min(final, key=lambda row: row["seed"])  # rows of one seed have equal lengths in every method
    return [
        f"{int(first['trained_parameters']):,}",
        place,
        figure("held_out_loss", 3),
        figure("accuracy", 1, 100.0),
        figure("kl", 3),
        figure("perplexity", 1),
        first["peak_mib"],
        f"{statistics.median(float(row['step_s']) for row in final):.2f}" if first["step_s"] else "",
    ]


def draw(losses: dict[str, dict[float, float]]) -> None:
    """Draw held-out loss over learning rate, a line for each method."""
    import matplotlib
    from matplotlib.figure import Figure

    from featherweight.report.pictures import settings

    with matplotlib.rc_context(settings("s2ft_learning")):
        figure = Figure(figsize=(9, 4.5), layout="constrained")
        axes = figure.add_subplot()
        for (name, points), marker in zip(losses.items(), "osD^", strict=False):
            axes.plot(list(points), list(points.values()), marker=marker, markersize=5, label=name)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_xlabel("learning rate")
        axes.set_ylabel("held-out loss (nats/token)")
        axes.grid(axis="y")
        axes.legend()
        figure.savefig(PICTURE, metadata={"Date": None})


def main() -> None:
    """Make the runs that are asked for; each writes its row at once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--runs", nargs="+", default=["s2ft:3e-3"], metavar="METHOD:LR")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--batch", type=int, default=6)
    parser.add_argument("--final", action="store_true")
    parser.add_argument("--questions", type=int, default=60)
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    if options.table:
        table()
        return
    if options.data is None:
        parser.error("--data is missing; give the folder that holds ARC-Easy/train.json and test.json")
    tokenizer, pretrained = load_tokenizer("smollm2"), load_model("smollm2")
    for one in options.runs:
        method, lr = one.split(":")
        row = run(method, float(lr), pretrained, tokenizer, options)
        write_rows("s2ft_learning", [row])
        print(row, machine(), flush=True)


if __name__ == "__main__":
    main()
