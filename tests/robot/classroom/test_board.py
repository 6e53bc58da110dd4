"""The leader board."""

import pytest

from featherweight.errors import ConfigError
from featherweight.robot.classroom.board import Board


def score(points, smoothness=-2.0):
    told = {"points": points, "placed": 1, "cubes": 3, "time_s": 20.0, "round_trip_ms": 5.0}
    return told | {"spectral_arc_length": smoothness, "drops": 0}


def test_the_best_run_of_each_student_stays_and_smoothness_decides_ties(tmp_path):
    board = Board(tmp_path / "board.json")
    for name, points, smoothness in (("a", 30, -2), ("b", 50, -3), ("a", 50, -2), ("a", 10, -1), ("b", 50, -4)):
        board.enter(name, score(points, smoothness))
    assert [(row.name, row.points, row.smoothness, row.runs) for row in board.rows] == [
        ("a", 50, -2, 3),
        ("b", 50, -3, 2),
    ]
    assert Board(tmp_path / "board.json").rows == board.rows
    assert board.to_csv().splitlines()[0].startswith("name,points,placed")
    assert board.to_csv().splitlines()[1].startswith("a,50,1,3,20.0,-2")


def test_a_damaged_board_is_one_sentence_and_stays(tmp_path):
    path = tmp_path / "board.json"
    path.write_text('[{"name": "a"')
    with pytest.raises(ConfigError, match="Move it away"):
        Board(path)
    assert path.exists()
