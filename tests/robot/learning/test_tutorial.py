"""The tutorial does what it says, with the commands that stand in it."""

import json
import re
import shlex
import time
from pathlib import Path

import pytest

from featherweight.cli import run

pytest.importorskip("mujoco")
ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "tutorials" / "robot_policy.md"


@pytest.mark.slow
def test_from_nothing_to_a_policy_that_places_47_of_50_cubes_in_20_minutes(tmp_path, monkeypatch, capsys):
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```sh\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    commands = [shlex.split(line, comments=True)[1:] for block in blocks for line in block.splitlines()]
    seconds, told = {}, {}
    for command in commands:
        start_s = time.process_time()
        assert run(command) == 0, command
        name = " ".join(command[:2])
        seconds[name], told[name] = time.process_time() - start_s, capsys.readouterr().out
    result = json.loads(told["robot eval"])
    assert result["runs"] == 50 and result["placed"] >= 47, result
    assert seconds["robot train"] < 180 and sum(seconds.values()) < 20 * 60, seconds
    assert "points: " in told["robot challenge"]  # the last one: a log scored again
    assert (tmp_path / "runs/robot/report.html").exists()
