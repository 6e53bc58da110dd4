"""What the commands share on the screen."""

import json

import pytest
import typer

from featherweight.cli.screen import leave_cleanly, print_error, print_json, print_result
from featherweight.report import Report
from featherweight.training.interrupt import TrainingInterrupted


def test_an_error_goes_to_standard_error_and_keeps_its_brackets(capsys):
    print_error("methods=[mst] is wrong")
    found = capsys.readouterr()
    assert found.out == "" and found.err == "error: methods=[mst] is wrong\n"


def test_json_is_one_object_on_standard_output(capsys, tmp_path):
    print_json({"peak_bytes": 1, "out": tmp_path})
    assert json.loads(capsys.readouterr().out) == {"peak_bytes": 1, "out": str(tmp_path)}


def test_a_report_says_where_its_page_lies(capsys, tmp_path):
    print_result(Report("A title"), tmp_path / "[run]")
    out = capsys.readouterr().out
    assert "A title" in out and "report.html" in out.replace("\n", "") and "[run]" in out


def test_an_interruption_leaves_with_130_and_says_how_to_go_on(capsys, tmp_path):
    with pytest.raises(typer.Exit) as left, leave_cleanly("train", ["a b.yaml"], lambda _: tmp_path / "run"):
        raise TrainingInterrupted(3, tmp_path / "run" / "checkpoints" / "3")
    assert left.value.exit_code == 130
    assert f"Resume with: fw train 'a b.yaml' --out {tmp_path / 'run'} --resume" in capsys.readouterr().err


def test_a_command_without_a_folder_is_only_interrupted(capsys):
    with pytest.raises(typer.Exit) as left, leave_cleanly("plan", []):
        raise KeyboardInterrupt
    assert left.value.exit_code == 130 and "interrupted" in capsys.readouterr().err
