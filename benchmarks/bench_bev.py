"""What each part of the ground segmentation is worth, at equal processor time on drives that nobody trained on.

    scripts/bench bev --rows column,ipm --seeds 0 --minutes 10     # rows in the CSV are skipped, stopped ones go on
    scripts/bench bev --costs                                       # on a quiet machine, for all rows at once
    scripts/bench bev --table

World: `fw bev synth`, 42 drives of 40 frames at 224 x 128 (seed 0), pitch known (but for the rows `steady`, `shaken`
and `shaken_head`: 480 x 272, the true pitch 0.5 degrees off in the last two); labels exact at 0.5 m. The "pon" split
leaves 34 drives to train on and 8 (320 frames) to judge. Networks: tiny and
tiny-columns. AdamW 1e-3, warm-up of 50 steps, linear decay,
weight decay 0.01, clip 1, batch 4, no augmentation. Every row takes as many steps as fit into the minutes of one core,
by the median cost of its own steps, measured once in rounds that alternate between rows; the trained networks are kept
beside the world. `prior` predicts in each cell what the training labels hold there most of the time.
"""

import argparse
import contextlib
import csv
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from measurement import RESULTS, write_rows

import featherweight as fw
from featherweight.bev.data.classes import NUSCENES
from featherweight.bev.evaluation import evaluate
from featherweight.bev.metrics import BEVConfusion
from featherweight.bev.options import BEVConfig
from featherweight.bev.synthetic.rig import WorldConfig
from featherweight.bev.synthetic.world import write_world
from featherweight.bev.task import BEVTask

CSV = RESULTS / "bev.csv"
BATCH, DRIVES = 4, 42
ROUNDS, STEPS_A_ROUND = 5, 4
LARGE = {"image_size": [272, 480]}
PLAIN = {"bce": 1.0, "iou": 0.0, "cycle": 0.0, "relevance": 0.0}


def _row(drives: int = 8, preset: str = "tiny", **options: Any) -> dict[str, Any]:
    """Return the options of the task of a row; `model` changes the preset."""
    return {"limit_sequences": drives, "preset": preset, **options}


def _columns(drives: int = 8, **options: Any) -> dict[str, Any]:
    return _row(drives, "tiny-columns", **options)


FLAT = {"view_transform": "ipm"}
ROWS: dict[str, dict[str, Any]] = {
    "prior": {},
    "upright": _row(),
    "ipm_fine": _row(model=FLAT),
    "ipm": _columns(model=FLAT),
    "mlp": _columns(model={"view_transform": "mlp"}),
    "column": _columns(),
    "column_pooled": _columns(loss={"iou_over": "micro_batch"}),
    "column_bce": _columns(loss=PLAIN),
    "column_cycle": _columns(model={"use_cycle": True}),
    "column_memory": _columns(model={"memory_length": 3}),
    "column_ema": _columns(ema=0.995),
    "column_1_layer": _columns(model={"num_layers": 1}),
    "upright_bce": _row(loss=PLAIN),
    "upright_memory": _row(model={"memory_length": 3}),
    "upright_flip": _row(flip=0.5, color_jitter=0.2),
    "upright_16": _row(16),
    "upright_32": _row(32),
    "ipm_fine_32": _row(32, model=FLAT),
    "ipm_32": _columns(32, model=FLAT),
    "column_32": _columns(32),
    "steady": _columns(model=LARGE),
    "shaken": _columns(model=LARGE, pitch_jitter_deg=0.5),
    "shaken_head": _columns(model={**LARGE, "use_pitch_head": True}, pitch_jitter_deg=0.5),
}
SHAKEN = ("shaken", "shaken_head")
"""Rows that learn with pitch drawn anew at each visit, and are judged where the drawn camera itself was off."""
SHOWN = ("drivable_area", "ped_crossing", "walkway", "carpark", "car", "truck", "bus", "pedestrian")


def world(folder: Path, *, is_large: bool = False, pitch_jitter_deg: float = 0.0) -> Path:
    """Return the folder of a world, drawn if it is not there."""
    width, height = (480, 272) if is_large else (224, 128)
    target = folder / (f"world-480-{pitch_jitter_deg:g}" if is_large else "world")
    if not target.exists():
        size = {"image_width": width, "image_height": height}
        write_world(target, WorldConfig(scenes=DRIVES, frames=40, pitch_jitter_deg=pitch_jitter_deg, **size))
    return target


def recipe(data: Path, row: str, seed: int, steps: int) -> dict[str, Any]:
    """Return the recipe of a row."""
    task = {"name": "bev", "data": str(data), "flip": 0.0, "color_jitter": 0.0, **ROWS[row]}
    return {
        "task": task,
        "optimizer": {"name": "adamw", "lr": 1e-3, "weight_decay": 0.01},
        "schedule": {"name": "linear", "warmup_steps": 50},
        "steps": steps,
        "micro_batch_size": BATCH,
        "max_grad_norm": 1.0,
        "evaluate_every": steps,
        "seed": seed,
    }


def measure_costs(folder: Path, rows: list[str]) -> None:
    """Keep the processor seconds of one step of each row beside the world, of rounds that alternate between rows.

    Where some of them are kept already, all are scaled so that the first of those costs what it did: a machine is
    quicker on one day than on another.
    """
    with contextlib.ExitStack() as stack:
        turns = {row: stack.enter_context(contextlib.closing(_steps(folder, row))) for row in rows if row != "prior"}
        costs: dict[str, list[float]] = {row: [] for row in turns}
        for turn in turns.values():
            next(turn)  # the first step allocates
        for _ in range(ROUNDS):
            for row, turn in turns.items():
                costs[row] += [next(turn) for _ in range(STEPS_A_ROUND)]
    path = folder / "costs.json"
    kept = json.loads(path.read_text()) if path.exists() else {}
    found = {row: statistics.median(values) for row, values in costs.items()}
    scale = next((kept[row] / found[row] for row in rows if row in kept), 1.0)
    path.write_text(json.dumps({**{row: scale * cost for row, cost in found.items()}, **kept}, indent=1))
    print(path.read_text())


def _steps(folder: Path, row: str) -> Iterator[float]:
    """Train on one batch for ever, and yield the processor seconds of each step."""
    data = world(folder, is_large=row in ("steady", *SHAKEN))
    task = BEVTask(BEVConfig.parse(_without_name(recipe(data, row, 0, 1)["task"])), seed=0)
    model = task.build_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
    batch = next(task.batches("train", micro_batch_size=BATCH, seed=0))
    while True:
        start = time.process_time()
        optimizer.zero_grad()
        task.loss(model, batch)[0].backward()
        optimizer.step()
        yield time.process_time() - start


def steps_in(data: Path, row: str, minutes: float) -> tuple[int, float]:
    """Return how many steps fit into the minutes, and the processor seconds of one, as they were measured."""
    path = data.parent / "costs.json"
    if row not in (json.loads(path.read_text()) if path.exists() else {}):
        measure_costs(data.parent, [row])
    cost = json.loads(path.read_text())[row]
    return max(60, int(60 * minutes / cost)), cost


def _without_name(options: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if key != "name"}


def prior_scores(data: Path) -> dict[str, float]:
    """Return the scores of the most frequent answer of every cell."""
    options = _without_name(recipe(data, "column", 0, 1)["task"])
    task = BEVTask(BEVConfig.parse(options), seed=0)
    held, seen = 0.0, 0.0
    for number in range(len(task.samples["train"])):
        sample = task.samples["train"][number]
        held = held + torch.from_numpy(sample.labels & sample.seen).double()
        seen = seen + torch.from_numpy(sample.seen).double()
    probability = (held / seen.clamp(min=1)).float()
    scores = BEVConfusion(task.source.classes.names, task.model_config.bev_grid)
    for number in range(len(task.samples["val"])):
        sample = task.samples["val"][number]
        scores.update(
            torch.logit(probability[None]), torch.from_numpy(sample.labels)[None], torch.from_numpy(sample.seen)[None]
        )
    return {"miou": scores.mean_iou(), **{f"iou_{name}": value for name, value in scores.iou().items()}}


def run(data: Path, row: str, seed: int, minutes: float) -> dict[str, Any]:
    """Train one row and return what it scored."""
    if row == "prior":
        return {"row": row, "seed": seed, "minutes": 0, "steps": 0, "step_s": 0, **_rounded(prior_scores(data))}
    folder = data.parent / "runs" / f"{row}-{seed}"
    begun = folder / "recipe.yaml"
    if begun.exists():  # stopped, with a checkpoint
        steps = int(yaml.safe_load(begun.read_text())["steps"])
        cost = 60 * minutes / steps
    else:
        steps, cost = steps_in(data, row, minutes)
    fw.train(recipe(data, row, seed, steps), out=folder, resume=begun.exists())
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in lines if "miou" in line][-1]
    scores = {key: value for key, value in last.items() if key == "miou" or key.startswith("iou_")}
    if row in SHAKEN:
        shaken = world(data.parent, is_large=True, pitch_jitter_deg=0.5)
        judged = evaluate(folder, shaken).scores
        scores = {"miou": judged.mean_iou(), **{f"iou_{name}": value for name, value in judged.iou().items()}}
    return {"row": row, "seed": seed, "minutes": minutes, "steps": steps, "step_s": round(cost, 4), **_rounded(scores)}


def _rounded(scores: dict[str, float]) -> dict[str, Any]:
    """Return the scores of every class, so that all rows of the CSV have the same columns."""
    keys = ["miou", *(f"iou_{name}" for name in NUSCENES.names)]
    return {key: round(scores[key], 4) if key in scores else "" for key in keys}


def known() -> list[dict[str, str]]:
    """Return the rows of the CSV."""
    return list(csv.DictReader(CSV.open())) if CSV.exists() else []


def print_table() -> None:
    """Print means over seeds, with the largest distance from them."""
    rows = known()
    print("| row | steps | seeds | mIoU | " + " | ".join(SHOWN) + " |")
    print("|---" * (4 + len(SHOWN)) + "|")
    for name in ROWS:
        own = [row for row in rows if row["row"] == name]
        if not own:
            continue
        cells = []
        for key in ("miou", *(f"iou_{shown}" for shown in SHOWN)):
            values = [float(row[key] or 0) for row in own]
            mean = statistics.mean(values)
            spread = max(abs(value - mean) for value in values)
            cells.append(f"{mean:.3f}" + (f" ± {spread:.3f}" if len(values) > 1 else ""))
        print(f"| {name} | {own[0]['steps']} | {len(own)} | " + " | ".join(cells) + " |")


def main() -> None:
    """Run what the CSV lacks, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir(), "featherweight-bev"))
    parser.add_argument("--costs", action="store_true", help="only measure what a step of each row costs")
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    if arguments.table:
        print_table()
        return
    torch.set_num_threads(1)
    if arguments.costs:
        measure_costs(arguments.folder, arguments.rows.split(","))
        return
    for seed in map(int, arguments.seeds.split(",")):
        for row in arguments.rows.split(","):
            minutes = 0 if row == "prior" else arguments.minutes
            wanted = (row, seed, minutes)
            if wanted not in [(one["row"], int(one["seed"]), float(one["minutes"])) for one in known()]:
                found = run(world(arguments.folder, is_large=row in ("steady", *SHAKEN)), row, seed, arguments.minutes)
                print(found, flush=True)
                write_rows(CSV.stem, [found])


if __name__ == "__main__":
    main()
