"""What a resumed run may change, and which run is meant if nobody says."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featherweight.errors import CheckpointError, ConfigError
from featherweight.training.checkpoint import Checkpoints
from featherweight.training.recipe import Recipe
from featherweight.training.schedule import Schedule

FREE_ON_RESUME = frozenset(
    {
        "name",
        "evaluate_at_start",
        "evaluate_every",
        "checkpoint_every",
        "checkpoint_at_end",
        "keep_checkpoints",
        "save_best",
        "early_stopping",
        "save_model",
        "log_every",
        "memory_steps",
        "trackers",
        "compare",
        "sharding",
    }
)
"""Keys that change what a run reports, when it ends and who computes it, and no step; a resumed run may change them."""

FREE_OF_SCHEDULE = ("schedule.inputs", "schedule.weights", "schedule.states", "schedule.attention")
"""Where tensors wait changes no bit of a step."""

LENGTH = ("steps", "epochs")
"""Keys that a resumed run may change, too: the run gets longer, and its schedule with it."""


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return "key: old -> new" for every setting in which two nested mappings differ.

    Example:
        >>> differences({"steps": 4, "optimizer": {"lr": 0.1}}, {"steps": 4, "optimizer": {"lr": 0.2, "rank": 8}})
        ['optimizer.lr: 0.1 -> 0.2', 'optimizer.rank: absent -> 8']
    """
    found = []
    for key in dict.fromkeys([*old, *new]):
        before, after = old.get(key, "absent"), new.get(key, "absent")
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found += differences(before, after, f"{prefix}{key}.")
        elif before != after:
            found.append(f"{prefix}{key}: {before} -> {after}")
    return found


def resume_conflicts(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return what forbids to continue a run of recipe `old` with recipe `new`; empty if nothing does.

    Keys that the older recipe does not know, because it was written before they existed, forbid nothing if they are
    free or have the value that was the only one then.
    """
    free = (*FREE_ON_RESUME, *LENGTH)
    found = [(line.partition(":")[0], line) for line in differences(_completed(old), new)]
    return [line for key, line in found if key.partition(".")[0] not in free and key not in FREE_OF_SCHEDULE]


def _completed(recipe: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a recipe with the defaults of the keys that its schedule did not know."""
    schedule = recipe.get("schedule")
    return recipe if not isinstance(schedule, Mapping) else {**recipe, "schedule": {**Schedule().to_dict(), **schedule}}


def changed_length(old: Mapping[str, Any], new: Mapping[str, Any]) -> str | None:
    """Return how the length of a run changes, as "steps: 500 -> 2000"; None if it does not."""
    changed = [f"{key}: {old.get(key)} -> {new.get(key)}" for key in LENGTH if old.get(key) != new.get(key)]
    return "; ".join(changed) or None


@dataclass(frozen=True)
class FoundRun:
    """A run that can be continued."""

    folder: Path
    step: int
    """Optimizer steps of its newest checkpoint; 0 if it has none."""
    is_finished: bool

    @property
    def sentence(self) -> str:
        """What was found, for people."""
        state = "is finished" if self.is_finished else "was not finished"
        at = f"its newest checkpoint is that of step {self.step}" if self.step else "it has no checkpoint"
        return f"{self.folder} {state}; {at}."


def find_run(recipe: Recipe, name: str, runs: Path = Path("runs")) -> FoundRun:
    """Return the newest run of a recipe, for a resume that names none.

    Args:
        recipe: what is to go on.
        name: of its runs, before their time.
        runs: the folder of all runs.
    Raises:
        CheckpointError: if no run of this recipe is there; says what stands against the newest one of the name.
    """
    folders = sorted((path.parent for path in runs.glob(f"{name}-*/recipe.yaml")), key=_began, reverse=True)
    against = ""
    for folder in folders:
        try:
            conflicts = resume_conflicts(Recipe.from_file(folder / "recipe.yaml").to_dict(), recipe.to_dict())
        except ConfigError:
            continue
        if not conflicts and (found := describe_run(folder)):
            return found
        against = against or f" The newest of that name, {folder}, differs ({'; '.join(conflicts)})."
    raise CheckpointError(
        f"run: out=None, and {runs}/{name}-* holds no run of this recipe; expected one to resume.{against} Give its "
        "folder by --out, or start without --resume."
    )


def describe_run(folder: Path) -> FoundRun | None:
    """Return what stands in a folder; None if that is no run."""
    if not (folder / "recipe.yaml").is_file():
        return None
    latest = Checkpoints(folder / "checkpoints").latest()
    return FoundRun(folder, latest.step if latest else 0, (folder / "summary.json").is_file())


def _began(folder: Path) -> float:
    """Return when a run began; its environment is written at every start, its metrics at every step."""
    return max(path.stat().st_mtime for path in (folder / "recipe.yaml", folder / "environment.json") if path.exists())


def regrouped(state_dict: Mapping[str, Any], groups: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a state dict in other groups of the same parameters, found by their names; options stay the state's.

    Args:
        state_dict: of an optimizer with named parameters.
        groups: those of the optimizer that is to load it.
    Returns:
        The state dict itself if it has as many groups already, or other parameters, which loading will refuse.
    """
    saved = state_dict["param_groups"]
    own = [name for group in groups for name in group.get("param_names", ())]
    places = {name: (g, i) for g in saved for name, i in zip(g.get("param_names", ()), g["params"], strict=False)}
    if len(saved) == len(groups) or sorted(own) != sorted(places):
        return dict(state_dict)
    renamed = []
    for group in groups:
        names = group["param_names"]
        options = places[names[0]][0]
        renamed.append({**options, "param_names": list(names), "params": [places[name][1] for name in names]})
    return {**state_dict, "param_groups": renamed}
