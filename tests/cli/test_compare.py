import json

from featherweight.cli import run


def test_json_holds_the_outcome_of_each_method_and_the_one_that_fails_is_named(recipe_file, tmp_path, capsys):
    changes = ["compare.adamw.lr=0.02", "compare.galore.target_modules=absent"]
    arguments = ["compare", str(recipe_file), *changes, "-m", "adamw, galore_8bit,galore", "--out", str(tmp_path / "a")]
    assert run([*arguments, "--json"]) == 1
    out, err = capsys.readouterr()
    result = json.loads(out)
    state = {name: one["footprint"]["measured"]["optimizer_state"] for name, one in result["methods"].items()}
    assert state["galore_8bit"] < state["adamw"] and list(state) == ["adamw", "galore_8bit"]
    assert err.startswith("error: galore: ") and "matches no module" in err and "galore" in result["failed"]

    # What is finished stays, and the same numbers are printed as a table.
    assert run([*arguments, "--resume"]) == 1
    text = capsys.readouterr().out
    assert "before" in text and "adamw" in text and "galore_8bit" in text and "step 1" not in text
    assert f"Report: {tmp_path / 'a' / 'report.html'}" in text
