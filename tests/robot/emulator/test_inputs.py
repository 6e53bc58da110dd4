"""Potentiometers and inputs of an emulated kit."""

import pytest

from featherweight.errors import ConfigError
from featherweight.robot.emulator.inputs import ConstantInputs, CsvInputs, FileInputs


def test_inputs_come_from_files(tmp_path):
    table = tmp_path / "pots.csv"
    table.write_text("time_s,p1,p2,p3,p4,p5,p6\n0,1,2,3,4,5,6\n1,7,8,9,10,11,12\n2,0,0,0,0,0,0\n")
    live = tmp_path / "live"

    playback, shared = CsvInputs(table), FileInputs(live)

    assert playback.read(0.5)[0] == (1, 2, 3, 4, 5, 6) and playback.read(3.2)[0] == (7, 8, 9, 10, 11, 12)
    assert shared.read(0.0)[0] == (512,) * 6
    live.write_text("9 8 7 6 5 4 0 1 0 1 0\n1 2 3")
    assert shared.read(0.0) == ((9, 8, 7, 6, 5, 4), (0, 1, 0, 1, 0))


@pytest.mark.parametrize(
    "text", ["time_s,p1\n0,1\n", "time_s,p1,p2,p3,p4,p5,p6\n0,1,2,3,4,5,9999\n", "time_s,p1,p2,p3,p4,p5,p6\n", "", "x"]
)
def test_a_wrong_csv_file_is_one_sentence(tmp_path, text):
    path = tmp_path / "pots.csv"
    path.write_text(text)

    with pytest.raises(ConfigError, match="pots.csv"):
        CsvInputs(path)


def test_readings_out_of_range_are_refused():
    with pytest.raises(ConfigError, match="from 0 to 1023"):
        ConstantInputs((0, 0, 0, 0, 0, 1024))
