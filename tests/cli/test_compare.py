import json

from featherweight.cli import run


def test_compare_prints_one_table_and_where_the_report_lies(recipe_file, tmp_path, capsys):
    arguments = ["compare", str(recipe_file), "compare.adamw.lr=0.02", "--optimizers", "adamw, galore"]
    assert run([*arguments, "--out", str(tmp_path / "all")]) == 0
    text = capsys.readouterr().out
    assert "before" in text and "adamw" in text and "galore" in text
    assert f"Report: {tmp_path / 'all' / 'report.html'}" in text


def test_json_holds_the_outcome_of_each_method(recipe_file, tmp_path, capsys):
    arguments = ["compare", str(recipe_file), "-m", "adamw,galore_8bit", "--out", str(tmp_path / "all"), "--json"]
    assert run(arguments) == 0
    result = json.loads(capsys.readouterr().out)
    state = {name: one["footprint"]["measured"]["optimizer_state"] for name, one in result["methods"].items()}
    assert state["galore_8bit"] < state["adamw"]
    assert run([*arguments, "--resume"]) == 0
    assert json.loads(capsys.readouterr().out) == result


def test_a_method_that_fails_is_named_and_the_others_are_printed(recipe_file, tmp_path, capsys):
    arguments = ["compare", str(recipe_file), "-m", "adamw,galore", "compare.galore.target_modules=absent"]
    assert run([*arguments, "--out", str(tmp_path / "all"), "--json"]) == 1
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert list(result["methods"]) == ["adamw"] and "matches no module" in result["failed"]["galore"]
    assert err.startswith("error: galore: ") and "matches no module" in err
