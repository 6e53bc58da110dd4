"""Calibration files."""

import pytest

from featherweight.errors import ConfigError
from featherweight.robot.calibration_file import KitCalibration, calibration_path, load_calibration


def test_calibrations_are_saved_by_id_and_a_wrong_file_is_refused(robot_home):
    calibration = KitCalibration(id="cube", pot_min_v=[0.4] * 6, pot_max_v=[4.6] * 6, sign=[1, -1, 1, 1, 1, 1])
    calibration.save()

    assert load_calibration("cube") == calibration and load_calibration("other") is None
    path = calibration_path("cube")
    path.rename(calibration_path("other"))
    with pytest.raises(ConfigError, match="belongs to another device"):
        load_calibration("other")
    with pytest.raises(ConfigError, match="is no name of a file"):
        calibration_path("../x")
    with pytest.raises(ConfigError, match="too small; expected more than 1 V"):
        KitCalibration(id="x", pot_min_v=[2.0] * 6, pot_max_v=[2.5] * 6)
    with pytest.raises(ConfigError, match="1 or -1"):
        KitCalibration(id="x", sign=[2] * 6)


def test_offsets_and_signs_go_forth_and_back():
    calibration = KitCalibration(id="x", zero_offset_deg=[3, -3, 4, 0, 0, 0], sign=[1, -1, 1, -1, 1, 1])
    joints = (10.0, 20.0, -30.0, 40.0, 50.0, -60.0)

    assert calibration.to_servo(joints) == (13, -17, -26, -40, 50, -60)
    assert calibration.to_joint(calibration.to_servo(joints)) == joints
