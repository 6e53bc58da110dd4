"""Memory of a training step of the ground segmentation, recipe by recipe: what is predicted, and what is measured.

    scripts/bench bev_memory [--preset tiny] [--batch 4]     # columns a few at a time: --preset tiny-columns

Predicted: a simulation of the recipe without data (`fw plan` makes the same). Measured: the tracker in steps on a drawn
world, in a process of its own for each recipe. Both count live tensors by what they are for, at the peak of a step.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from measurement import write_rows

from featherweight.bev.synthetic.rig import WorldConfig
from featherweight.bev.synthetic.world import write_world
from featherweight.memory import measure_memory
from featherweight.training.estimate import estimate_memory
from featherweight.training.loop import Loop
from featherweight.training.recipe import Recipe

GALORE = {"name": "galore_8bit", "rank": 0.25}
RECIPES: dict[str, dict[str, Any]] = {
    "AdamW": {"optimizer": {"name": "adamw"}},
    "GaLore, 8-bit states": {"optimizer": GALORE},
    "Tensor-GaLore": {"optimizer": {"name": "tensor_galore", "rank": 0.25, "proj_type": "tucker"}},
    "+ checkpointing": {"optimizer": GALORE, "activation_checkpointing": True},
    "+ 8 columns at once": {"optimizer": GALORE, "activation_checkpointing": True, "column_chunk": 8},
    "AdamW, 8 columns at once": {"optimizer": {"name": "adamw"}, "column_chunk": 8},
}
MIB = 2.0**20


def recipe_of(data: str, name: str, preset: str, batch: int) -> Recipe:
    """Return a recipe of the table."""
    options = dict(RECIPES[name])
    chunk = options.pop("column_chunk", 0)
    task = {"name": "bev", "data": data, "preset": preset, "model": {"column_chunk": chunk} if chunk else {}}
    shared = {"task": task, "steps": 10, "micro_batch_size": batch, "memory_steps": []}
    return Recipe.parse({**shared, **options}, where=name)


def measured(data: str, name: str, preset: str, batch: int) -> dict[str, Any]:
    """Measure the second step of a recipe, and the processor seconds of those after it."""
    torch.set_num_threads(1)
    loop = Loop(recipe_of(data, name, preset, batch))
    loop.step()
    with measure_memory(loop.model, loop.optimizer) as memory:
        loop._optimizer_step()
    seconds = []
    for _ in range(5):
        start = time.process_time()
        loop.step()
        seconds.append(time.process_time() - start)
    return {
        "measured_mib": memory.peak_bytes / MIB,
        "activations_mib": memory.peak_by_category["activations"] / MIB,
        "states_mib": memory.peak_by_category["optimizer_state"] / MIB,
        "step_s": statistics.median(seconds),
    }


def main() -> None:
    """Compare every recipe and write its row at once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), choices=list(RECIPES))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measured(**json.loads(options.one))))
        return
    with tempfile.TemporaryDirectory() as folder:
        data = write_world(Path(folder, "world"), WorldConfig(scenes=10, frames=2, image_width=224, image_height=128))
        for name in options.recipes:
            if "column_chunk" in RECIPES[name] and options.preset != "tiny-columns":
                continue
            arguments = {"data": str(data), "name": name, "preset": options.preset, "batch": options.batch}
            estimate = estimate_memory(None, recipe_of(**arguments), device="cpu")
            command = [sys.executable, __file__, "--one", json.dumps(arguments)]
            found = json.loads(subprocess.check_output(command, text=True).splitlines()[-1])
            row = {
                "preset": options.preset,
                "batch": options.batch,
                "recipe": name,
                "predicted_mib": estimate.peak_bytes / MIB,
                **found,
            }
            print({key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()})
            write_rows("bev_memory", [{k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}])


if __name__ == "__main__":
    main()
