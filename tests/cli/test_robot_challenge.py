"""`fw robot challenge`."""

import json

import pytest

from featherweight.cli import run

pytest.importorskip("mujoco")


def test_a_run_is_judged_logged_and_scored_again_to_the_same_number(tmp_path, capsys):
    arguments = [
        "robot",
        "challenge",
        "--impair",
        "tokyo-dhaka",
        "--runs",
        "1",
        "--log",
        str(tmp_path / "logs"),
        "--json",
    ]
    assert run(arguments) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["runs"][0]["cubes"] == 1 and 140 < told["summary"]["round_trip_ms"] < 220
    assert run(["robot", "challenge", "--score", str(tmp_path / "logs" / "10000.jsonl"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == told["runs"][0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--operator", "policy"], "needs a policy"),
        (["--policy", "runs/robot"], "policy is given to operator=hand, a hand"),
        (["--impair", "mars"], "is unknown; expected a network"),
        (["--score", "/nowhere"], "cannot be read"),
        (["--operator", "shared", "--policy", "/nowhere"], "holds no policy.json"),
    ],
)
def test_every_mistake_is_one_sentence(arguments, message, capsys):
    assert run(["robot", "challenge", *arguments]) in (1, 2)
    errors = " ".join(capsys.readouterr().err.split())
    assert message in errors and "Traceback" not in errors
