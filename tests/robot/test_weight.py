"""What the robot imports."""

import subprocess
import sys

import pytest

from featherweight import robot as fwr

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals")


def test_the_driver_and_the_session_import_no_torch():
    program = (
        "import sys\n"
        "sys.modules['torch'] = None\n"  # makes every import of it fail
        "from featherweight import robot as fwr\n"
        "import featherweight.robot.network.follower_side, featherweight.robot.network.operator_side\n"
        "import featherweight.robot.network.relay, featherweight.robot.sim.robot, featherweight.robot.doctor\n"
        "for name in fwr.__all__:\n"
        "    getattr(fwr, name)\n"
        "robot = fwr.UMIRobot(fwr.UMIRobotConfig(port='sim'))\n"
        "robot.connect(); robot.get_observation(); robot.disconnect()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_every_public_name_has_a_docstring_and_the_driver_alone_is_light():
    for name in fwr.__all__:
        if name not in ("JOINTS", "JOINT_KEYS"):
            assert (getattr(fwr, name).__doc__ or "").strip(), name
    program = (
        "import sys\nfrom featherweight import robot as fwr\nfwr.UMIRobot\n"
        "print([m for m in ('torch', 'mujoco', 'zenoh', 'websockets', 'transformers', 'numpy', 'PIL') if m in "
        "sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
