"""`fw init --example` writes the recipes that ship with the package, and keeps its other form."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from featherweight.cli import examples, run
from featherweight.cli.examples import example_recipes
from featherweight.training.recipe import Recipe

ROOT = Path(__file__).parents[2]


def test_every_recipe_of_the_project_is_an_example_and_ships_in_the_wheel():
    recipes = {file.stem: file for file in (ROOT / "examples" / "recipes").glob("*.yaml")}
    assert example_recipes() == recipes and "demo" in recipes
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["force-include"]["examples/recipes"] == "featherweight/examples"


def test_recipes_are_found_beside_the_package_as_a_wheel_has_them(tmp_path, monkeypatch):
    folder = tmp_path / "featherweight" / "examples"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text("steps: 1\n")
    monkeypatch.setattr(examples.featherweight, "__file__", str(tmp_path / "featherweight" / "__init__.py"))
    assert example_recipes() == {"mine": folder / "mine.yaml"}


@pytest.mark.parametrize("recipe", [None, "mine.yaml"])
def test_an_example_is_written_and_is_a_recipe(tmp_path, monkeypatch, capsys, recipe):
    monkeypatch.chdir(tmp_path)
    words = ["init", *([] if recipe is None else [recipe]), "--example", "demo_tiny"]
    name = recipe or "demo_tiny.yaml"
    assert run(words) == 0
    assert f"Next: fw train {name}" in capsys.readouterr().out
    assert Path(name).read_text() == (ROOT / "examples" / "recipes" / "demo_tiny.yaml").read_text()
    Recipe.from_file(Path(name)).task_config()
    Path(name).write_text("mine")
    assert run(words) == 2 and Path(name).read_text() == "mine"
    assert "is there already" in capsys.readouterr().err
    assert run([*words, "--force"]) == 0 and Path(name).read_text() != "mine"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--example", "dmeo"], "Did you mean 'demo'"),
        (["--example", "demo", "--model", "tiny"], "--model is given beside --example demo"),
        (["a.yaml", "--model", "tiny"], "--data is missing; expected RECIPE, --data and --model"),
        ([], "RECIPE is missing"),
        (["a.json", "--example", "demo"], "expected .yaml"),
    ],
)
def test_bad_input_is_one_sentence_before_torch_is_imported(tmp_path, arguments, sentence):
    code = (
        "import sys; from featherweight.cli import run; code = run(sys.argv[1:]); print(code, 'torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code, "init", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert done.stdout.split() == ["2", "False"] and sentence in done.stderr
    assert not list(tmp_path.iterdir())
