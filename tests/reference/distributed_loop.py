"""What several processes find out that run recipes."""

from pathlib import Path
from typing import Any

import torch

import featherweight as fw
from featherweight.distributed.ddp import bit_sum
from featherweight.distributed.whole import whole_weights
from featherweight.errors import FeatherweightError
from featherweight.training.checkpoint import Checkpoints
from featherweight.training.events import Callback
from featherweight.training.interrupt import StopRequest
from featherweight.training.loop import Loop
from featherweight.training.recipe import Recipe
from featherweight.training.task import tasks

tasks.register("regression", "regression_task:RegressionTask")

# The gradient of the second layer has rank 1, as one number follows: more directions would be rounding, of which Adam
# makes whole steps.
GALORE = {"name": "galore", "rank": 1, "lr": 1e-2, "update_proj_gap": 5}
VARIANTS: dict[str, dict[str, Any]] = {
    "ordinary": {},
    "cores": {"max_grad_norm": None, "accumulation_steps": 2},
    "adamw": {"optimizer": {"name": "adamw", "layerwise": True, "lr": 1e-2}},
    "galore layer-wise": {"optimizer": {**GALORE, "layerwise": True}, "methods": ["core_gradient"]},
    "bf16": {"precision": "bf16", "optimizer": {**GALORE, "layerwise": True}},
    "dropout": {"task": {"name": "regression", "dropout": 0.3}},
}
"""Recipes that differ from `recipe()`."""
EPOCHS: dict[str, Any] = {"epochs": 4, "steps": None}
"""Of 24 samples each, which are two steps."""


def recipe(**changes: Any) -> Recipe:
    """Three micro-batches a step, so that two processes have unequal shares."""
    values: dict[str, Any] = {
        "task": {"name": "regression", "double": True},
        "optimizer": GALORE,
        "steps": 8,
        "micro_batch_size": 4,
        "accumulation_steps": 3,
        "memory_steps": [2],
        "checkpoint_every": 4,
        "sharding": {"kind": "auto", "check_every": 2},
    }
    return Recipe.parse({**values, **changes}, where="recipe")


def trained(changes: dict[str, Any]) -> dict[str, Any]:
    loop = Loop(recipe(**changes))
    losses = [loop.step()["loss"] for _ in range(8)]
    held_out = loop.evaluate()
    weights = {name: tensor.clone() for name, tensor in whole_weights(loop.model).items()}
    return {
        "losses": losses,
        "weights": weights,
        "items": loop.progress.items,
        "held_out": held_out,
        "bytes": loop.bytes_of_process(),
    }


class Stop(Exception):
    pass


class AtFive(Callback):
    def on_step(self, event: Any) -> None:
        if event.step == 5:
            raise Stop


def refusal(action: Any) -> str:
    try:
        action()
    except FeatherweightError as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def resumed(folder: Path, **more: Any) -> dict[str, Any]:
    """A run of eight steps, and one that goes on from the fourth; with dropout, so that random numbers count."""
    changes = {"task": {"name": "regression", "dropout": 0.3}, **more}
    whole = fw.train(recipe(**changes), out=folder / "whole", callbacks=[])
    assert whole.summary.steps == 8
    half = recipe(**changes)
    loop = Loop(half)
    checkpoints = Checkpoints(folder / "half" / "checkpoints")
    try:
        loop.run([AtFive()], checkpoints, StopRequest())
    except Stop:
        pass
    loop = Loop(half)
    latest = checkpoints.latest()
    assert latest is not None and latest.step == 4
    loop.resume(latest)
    while loop.progress.step < 8:
        loop.step()
    saved = torch.load(folder / "whole" / "model" / "weights.pt")
    equal = all(torch.equal(saved[name], tensor) for name, tensor in whole_weights(loop.model).items())
    return {"equal": equal, "files": sorted(str(path.relative_to(folder)) for path in (folder / "whole").rglob("*"))}


def grow(folder: Path, steps: int, **changes: Any) -> Loop:
    """Go on from the newest checkpoint in a folder, if there is one, to so many steps, and write another one."""
    loop, checkpoints = Loop(recipe(**changes)), Checkpoints(folder)
    latest = checkpoints.latest()
    if latest is not None:
        loop.resume(latest)
    while loop.progress.step < steps:
        loop.step()
    weights, state = loop.weights(), loop.state_dict()
    loop.world.on_first(lambda: checkpoints.save(steps, weights, state, loop.recipe.to_dict()))
    return loop


def judged(folder: Path) -> dict[str, Any]:
    """A run of epochs that keeps its best weights and ends early, resumed with more patience."""
    stop = {"patience": 2, "threshold": 100.0}
    changes = {**EPOCHS, "evaluate_every": 1, "save_best": True, "early_stopping": stop}
    short = fw.train(recipe(**changes), out=folder / "judged", callbacks=[]).summary
    stop["patience"] = 99
    longer = fw.train(recipe(**changes), out=folder / "judged", resume=True, callbacks=[]).summary
    return {"steps": [short.steps, longer.steps], "why": short.ended_early, "best": [short.best_step, longer.best_step]}


def findings(folder: Path) -> dict[str, Any]:
    """All that recipes of several processes find out.

    Args:
        folder: for runs; one of one process is in it already.
    """
    rank = fw.distributed.rank()
    grow(folder / "grown", 5)
    found: dict[str, Any] = {name: trained(changes) for name, changes in VARIANTS.items()}
    found["resumed"] = resumed(folder)
    found["judged"] = judged(folder)
    layerwise = {"optimizer": {**GALORE, "layerwise": True}}
    broken = {"task": {"name": "regression", "broken_at": 4}, **layerwise}  # of step 2, of rank 0
    loop = Loop(recipe(**broken))
    loop.step()
    before = [bit_sum(tensor) for tensor in loop.model.state_dict().values()]
    found["broken"] = refusal(loop.step)
    found["untouched"] = before == [bit_sum(tensor) for tensor in loop.model.state_dict().values()]
    found["seeds"] = refusal(lambda: Loop(recipe(seed=rank)))
    found["few"] = refusal(lambda: Loop(recipe(accumulation_steps=1)))
    found["none"] = refusal(lambda: Loop(recipe(sharding="none")))
    found["used folder"] = refusal(lambda: fw.train(recipe(), out=folder / "whole", callbacks=[]))
    found["bad key"] = refusal(lambda: fw.train({"task": "regression", "stpes": 3}, callbacks=[]))
    return found
