import json

from featherweight.cli import run


def test_a_sweep_prints_one_table_and_its_json_has_the_same_numbers(recipe_file, tmp_path, capsys):
    command = ["sweep", str(recipe_file), "optimizer.lr=0.01,0.02", "seed=0,1", "steps=2", "--out", str(tmp_path / "s")]
    assert run([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["optimizer.lr"] for row in found["settings"]] == [0.01, 0.02] and len(found["points"]) == 4
    assert run([*command, "--resume"]) == 0
    shown = capsys.readouterr().out
    assert "±" in shown and "held-out" in shown and "step 1" not in shown  # nothing was made again
    assert run(["sweep", str(recipe_file), "steps=2"]) == 2
    assert "expected at least one axis" in capsys.readouterr().err


def test_a_failed_point_makes_the_exit_code_1(recipe_file, tmp_path, capsys):
    command = ["sweep", str(recipe_file), "optimizer.target_modules=absent,all-linear", "steps=1"]
    assert run([*command, "--out", str(tmp_path / "s")]) == 1
    captured = capsys.readouterr()
    assert "error: optimizer.target_modules=absent" in captured.err and "matches no module" in captured.err
