"""Kills a process with SIGKILL while it writes checkpoints, again and again, and prints what survived as JSON.

usage: python kill_during_checkpoint.py FOLDER ROUNDS

A program of its own, because it forks: the parent imports torch once and each child, made in milliseconds, trains on
from the newest checkpoint and writes one after every step until it is killed.
"""

import json
import os
import random
import signal
import sys
import time
import warnings
from pathlib import Path

import torch

from featherweight.training.checkpoint import Checkpoints
from featherweight.training.loop import Loop
from featherweight.training.recipe import Recipe
from featherweight.training.task import tasks

RECIPE = {
    "task": {"name": "regression", "hidden": 64, "dropout": 0.1},
    "optimizer": {"name": "galore", "rank": 8, "update_proj_gap": 7},
    "steps": 100_000,
    "micro_batch_size": 4,
    "memory_steps": [],
}


def write_until_killed(checkpoints: Checkpoints, recipe: Recipe) -> None:
    loop = Loop(recipe)
    if (latest := checkpoints.latest()) is not None:
        loop.resume(latest)
    while True:
        loop.step()
        checkpoints.save(loop.progress.step, loop.model, loop.state_dict(), recipe.to_dict())


def main(folder: Path, rounds: int) -> None:
    warnings.simplefilter("error")  # no checkpoint may turn out damaged
    torch.set_num_threads(1)  # a forked child has no other threads
    tasks.register("regression", "regression_task:RegressionTask")
    recipe = Recipe.parse(RECIPE)
    checkpoints = Checkpoints(folder, keep=2)
    Loop(recipe).step()  # imports and first-use costs, once for all children
    moments, last_step, mid_write = random.Random(0), 0, 0
    for _ in range(rounds):
        child = os.fork()
        if child == 0:
            write_until_killed(checkpoints, recipe)
        while len(list(folder.glob("step-*"))) == 0 or max(folder.glob("step-*")).name == f"step-{last_step:08d}":
            time.sleep(0.001)
        time.sleep(moments.uniform(0.0, 0.05))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        mid_write += any(folder.glob(".step-*.tmp"))
        latest = checkpoints.latest()
        assert latest is not None and latest.step > last_step
        last_step = latest.step
    resumed = Loop(recipe)
    resumed.resume(latest)
    resumed.step()
    through = Loop(recipe)
    for _ in range(last_step + 1):
        through.step()
    pairs = zip(resumed.model.parameters(), through.model.parameters(), strict=True)
    is_equal = all(torch.equal(one, other) for one, other in pairs)
    print(json.dumps({"step": last_step, "mid_write": mid_write, "is_equal": is_equal}))  # noqa: T201


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
