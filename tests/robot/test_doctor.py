"""What the doctor says."""

import json

from featherweight.robot.doctor import diagnose


def test_the_doctor_moves_every_joint_of_a_kit_there_and_back():
    report = json.loads(diagnose("sim", move=True).to_json())
    text = json.dumps(report)
    assert "Kit on sim" in text and "shoulder_pan moved (deg)" in text and "mujoco" in text
