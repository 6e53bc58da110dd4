from featherweight.cli import run
from featherweight.cli.optimizer_names import given_names


def test_the_former_spelling_works_with_a_hint_of_one_line(capsys):
    assert given_names("adamw,galore", None) == "adamw,galore"
    assert capsys.readouterr().err == ""
    assert given_names("adamw,galore", "fira") == "fira"
    assert capsys.readouterr().err == "hint: --methods is called --optimizers now; both work\n"


def test_the_former_spelling_reaches_the_comparison_and_stands_in_no_help(capsys, recipe_file):
    assert run(["compare", str(recipe_file), "--methods", "adamv"]) != 0
    assert "--methods is called --optimizers" in capsys.readouterr().err
    assert run(["compare", "--help"]) == 0
    text = capsys.readouterr().out
    assert "--optimizers" in text and "--methods" not in text
