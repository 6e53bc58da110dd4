"""Is what the planner predicts what a run takes? Simulated against measured, recipe by recipe, on this machine.

    scripts/bench plan_check [--models smollm2-135m llama-3.2-1b llama-3-8b] [--seq-len 1024] [--batch 1]

On a GPU: peak of allocated and of reserved memory against torch's own counters, each recipe in a process of its own;
and whether a recipe that is said to fit a budget runs when the process may not take more (two budgets around the need:
3 % above it must run, 8 % below it must not). On a CPU: the peak of the tracker, with the small shape.
"""

import argparse
import json
import subprocess
import sys
from typing import Any

import torch
from measurement import write_rows

from featherweight.errors import FeatherweightError, OutOfMemoryError
from featherweight.memory import measure_memory
from featherweight.planner import Target, need_of
from featherweight.training.estimate import estimate_memory
from featherweight.training.loop import Loop
from featherweight.training.out_of_memory import explain_out_of_memory
from featherweight.training.recipe import Recipe

SMALL = {
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 688,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 4096,
}
RECIPES: dict[str, dict[str, Any]] = {
    "adamw": {"optimizer": {"name": "adamw_8bit"}},
    "adamw, checkpointing": {"optimizer": {"name": "adamw_8bit"}, "activation_checkpointing": True},
    "lora, MsT": {"optimizer": {"name": "adamw"}, "methods": ["lora", {"mst": {"checkpoint": True}}]},
    "s2ft": {"optimizer": {"name": "adamw"}, "methods": ["s2ft"]},
    "galore layer-wise": {"optimizer": {"name": "galore_8bit", "rank": 0.25, "layerwise": True}},
    "galore layer-wise, MsT": {
        "optimizer": {"name": "galore_8bit", "rank": 0.25, "layerwise": True},
        "methods": [{"mst": {"checkpoint": True}}],
    },
    "q_galore": {
        "optimizer": {"name": "q_galore", "rank": 0.25, "layerwise": True},
        "methods": ["core_gradient", {"mst": {"checkpoint": True}}],
    },
}


def main() -> None:
    """Compare every pair and write its row at once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    on_gpu = torch.cuda.is_available()
    parser.add_argument("--models", nargs="+", default=["smollm2-135m", "llama-3.2-1b"] if on_gpu else ["small"])
    parser.add_argument("--seq-len", type=int, default=1024 if on_gpu else 128)
    parser.add_argument("--batch", type=int, default=1 if on_gpu else 2)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measured(**json.loads(options.one))))
        return
    for model in options.models:
        for name in RECIPES:
            write_rows("plan_check", [row(model, name, options.seq_len, options.batch)])


def recipe_of(model: str, name: str, seq_len: int, batch: int) -> Recipe:
    """Return a recipe of the table."""
    task = {"name": "text", "model": SMALL if model == "small" else model, "seq_len": seq_len}
    shared = {"task": task, "steps": 10, "micro_batch_size": batch, "precision": "bf16", "memory_steps": []}
    return Recipe.parse({**shared, **RECIPES[name]}, where=name)


def row(model: str, name: str, seq_len: int, batch: int) -> dict[str, Any]:
    """Simulate, then measure in another process."""
    recipe = recipe_of(model, name, seq_len, batch)
    target = Target.of(device="cuda" if torch.cuda.is_available() else "cpu")
    estimate = estimate_memory(None, recipe, device=target.device)
    need = need_of(estimate, target)
    what = {"model": model, "name": name, "seq_len": seq_len, "batch": batch}
    truth = ask({**what, "limit_bytes": None})
    result = {
        "model": model,
        "recipe": name,
        "seq_len": seq_len,
        "batch": batch,
        "predicted_allocated": need.allocated_bytes,
        "measured_allocated": truth["allocated"],
        "allocated_error": round(need.allocated_bytes / truth["allocated"] - 1, 5),
        "predicted_reserved": need.reserved_bytes,
        "measured_reserved": truth["reserved"],
        "runs_3_percent_above": "",
        "runs_8_percent_below": "",
    }
    if torch.cuda.is_available():
        for key, factor in (("runs_3_percent_above", 1.03), ("runs_8_percent_below", 0.92)):
            result[key] = ask({**what, "limit_bytes": int(need.total_bytes * factor)})["ran"]
    print(result, flush=True)
    return result


def ask(what: dict[str, Any]) -> dict[str, Any]:
    """Measure in a process that does nothing else."""
    command = [sys.executable, __file__, "--one", json.dumps(what)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def measured(model: str, name: str, seq_len: int, batch: int, limit_bytes: int | None) -> dict[str, Any]:
    """Make three steps of a recipe on batches without content, within a limit if there is one."""
    on_gpu = torch.cuda.is_available()
    if limit_bytes is not None:
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, limit_bytes / total))
    recipe = recipe_of(model, name, seq_len, batch)
    try:
        with explain_out_of_memory(recipe):
            loop = Loop(recipe, task=recipe.task_class.skeleton(recipe.task_config(), seed=recipe.seed))
            if on_gpu:
                for _ in range(3):
                    loop.step()
                peaks = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
                return {"ran": True, "allocated": peaks[0], "reserved": peaks[1]}
            with measure_memory(loop.model, loop.optimizer) as memory:
                for _ in range(2):
                    loop.step()
    except OutOfMemoryError:
        return {"ran": False, "allocated": 0, "reserved": 0}
    except FeatherweightError as error:
        raise SystemExit(str(error)) from error
    return {"ran": True, "allocated": memory.peak_bytes, "reserved": memory.peak_bytes}


if __name__ == "__main__":
    main()
