import json

import pytest

from featherweight.cli import run


@pytest.mark.parametrize("optimizer", ["adamw", "galore_8bit"])
def test_predicted_and_measured_bytes_are_equal(recipe_file, tmp_path, monkeypatch, capsys, optimizer):
    monkeypatch.chdir(tmp_path)
    assert run(["measure", str(recipe_file), f"optimizer={optimizer}", "--steps", "2", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert {name: result["measured"][name] for name in result["predicted"]} == result["predicted"]
    assert result["peak_bytes"] == sum(result["at_peak"].values())
    assert [path.name for path in tmp_path.iterdir()] == ["small.yaml"]


def test_measure_prints_a_table(recipe_file, capsys):
    assert run(["measure", str(recipe_file)]) == 0
    text = capsys.readouterr().out
    assert "Memory of 3 steps: small, galore" in text and "optimizer state" in text
