"""The plug-ins of LeRobot, run by LeRobot itself in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PLUGINS = Path(__file__).parents[2] / "examples" / "lerobot"

PROGRAM = """
import json, sys, time
import torch
# The operators of torchvision may be built for another torch; none is used here.
torch.library.register_fake = lambda *a, **k: (lambda function: function)
from lerobot.robots.utils import make_robot_from_config
from lerobot.teleoperators.utils import make_teleoperator_from_config
import lerobot_robot_umirobot, lerobot_teleoperator_umirobot
from lerobot.robots import RobotConfig
from lerobot.teleoperators import TeleoperatorConfig
robot = make_robot_from_config(RobotConfig.get_choice_class("umirobot")(id="kit07", port="sim"))
leader = make_teleoperator_from_config(TeleoperatorConfig.get_choice_class("umirobot_pots")(id="cube", port="sim"))
assert set(robot.action_features) == set(leader.action_features) == set(robot.observation_features)
with robot, leader:
    for _ in range(60):
        robot.get_observation()
        sent = robot.send_action(leader.get_action())
        time.sleep(1 / 60)
    print(json.dumps({"sent": sent, "is": robot.get_observation(), "type": robot.config_class().type}))
"""


@pytest.mark.slow
def test_lerobot_drives_the_arm_through_the_plug_ins(tmp_path):
    """FEATHERWEIGHT_LEROBOT is a folder with lerobot 0.4 (it wants another torch than we do)."""
    folder = os.environ.get("FEATHERWEIGHT_LEROBOT")
    if folder is None:
        pytest.skip("FEATHERWEIGHT_LEROBOT is not set; run pip install --target FOLDER lerobot==0.4.4 and set it")
    paths = [str(path) for path in PLUGINS.iterdir()] + [os.environ.get("PYTHONPATH", ""), folder]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "HF_LEROBOT_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.strip().splitlines()[-1])
    assert result["type"] == "umirobot" and set(result["sent"]) == set(result["is"])
