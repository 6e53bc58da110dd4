"""With and without graphics."""

import os
import subprocess
import sys


def test_without_graphics_the_reason_and_the_install_line_are_told_and_angles_still_work():
    program = (
        "from featherweight import robot as fwr\n"
        "from featherweight.errors import DeviceError\n"
        "try:\n"
        "    fwr.SimRobot(fwr.SimRobotConfig(cameras=('front',))).connect()\n"
        "except DeviceError as error:\n"
        "    print(error)\n"
        "with fwr.SimRobot() as robot:\n"
        "    print(robot.get_observation()['gripper.pos'])\n"
    )
    environment = {**os.environ, "MUJOCO_GL": "disable"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, env=environment)

    assert done.returncode == 0, done.stderr
    assert "apt-get install -y libosmesa6" in done.stdout and done.stdout.strip().endswith("0.0")


def test_pictures_can_be_drawn_where_somebody_has_imported_mujoco_before(graphics):
    program = (
        "import mujoco\n"
        "from featherweight.robot.sim.cameras import Cameras\n"
        "from featherweight.robot.sim.graphics import import_mujoco\n"
        "import_mujoco()\n"
        "print(mujoco.rendering.classic.gl_context.GLContext.__module__)\n"
    )
    environment = {name: value for name, value in os.environ.items() if name not in ("MUJOCO_GL", "DISPLAY")}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == f"mujoco.{graphics}"
