"""The walk of a recipe through `fw train`, as docs/architecture.md tells it: files, their order, at most twelve.

Followed are the calls that lead from one station to the next. What a station asks of others below itself (reading
options, storing codes) is no part of the walk, and no station is reached through it.
"""

import re
import sys
from pathlib import Path

import yaml

from featherweight.cli import run

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "featherweight"
STATIONS = {
    "cli/train.py": "train",
    "planner/train.py": "train_with_advice",
    "training/recipe.py": "load_recipe",
    "training/run.py": "train",
    "training/loop.py": "__init__",
    "text/causal_task.py": "build_model",
    "models/load.py": "load_model",
    "methods/method.py": "apply",
    "optim/build.py": "build_optimizer",
    "training/checkpoint.py": "save",
    "training/summary.py": "run_report",
    "report/report.py": "save_html",
}
"""File -> the function by which the walk enters it, in this order."""
MODEL = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
MODEL |= {"num_attention_heads": 2, "max_position_embeddings": 64}


def station_of(frame):
    """Return the file of a frame within the package, or None."""
    path = Path(frame.f_code.co_filename)
    return path.relative_to(PACKAGE).as_posix() if PACKAGE in path.parents else None


def is_look(frame):
    """Say whether a frame belongs to the look at the words of a recipe before the walk begins."""
    while (name := station_of(frame)) not in STATIONS:
        if name == "cli/recipe_check.py":
            return True
        frame = frame.f_back
        if frame is None:
            return False
    return False


def test_a_recipe_visits_twelve_files_one_after_the_other(tmp_path):
    text = tmp_path / "english.txt"
    text.write_text((ROOT / "LICENSE").read_text())
    task = {"name": "text", "model": MODEL, "corpus": str(text), "seq_len": 32, "max_train_tokens": 600}
    recipe = {"task": task, "optimizer": "adamw", "methods": ["mst"], "steps": 2, "micro_batch_size": 1}
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump({**recipe, "memory_steps": [], "checkpoint_every": 1}))
    entered, between, seen = [], set(), {}

    def watch(frame, event, _):
        if event != "call" or id(frame.f_code) in seen:  # a million calls, so most of them cost a look-up
            return
        name = station_of(frame)
        if name in STATIONS and is_look(frame.f_back):
            return
        seen[id(frame.f_code)] = frame.f_code
        if name not in STATIONS or frame.f_code.co_name != STATIONS[name] or name in entered:
            return
        entered.append(name)
        if len(entered) == len(STATIONS):
            sys.setprofile(before)  # what follows are pictures
        while (name := station_of(frame)) != "cli/train.py":
            between.add(name)
            frame = frame.f_back

    before = sys.getprofile()
    sys.setprofile(watch)
    try:
        assert run(["train", str(file), "--out", str(tmp_path / "run"), "--json"]) == 0
    finally:
        sys.setprofile(before)

    # Mutation: a file more on the way stands between two stations; a stage that moves changes the order.
    assert entered == list(STATIONS) and len(entered) <= 12
    # None: typer, torch, the standard library. The world hands on what one of several processes does for all.
    assert between - {None, "distributed/world.py"} <= set(STATIONS)


def test_the_page_of_the_architecture_tells_the_same_walk():
    page = (ROOT / "docs" / "architecture.md").read_text()
    walk = page[page.index("## The walk of a recipe") :].split("\n## ")[0]
    assert [name for name in re.findall(r"`(\w+/\w+\.py)`", walk) if (PACKAGE / name).exists()] == list(STATIONS)
