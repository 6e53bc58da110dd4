"""Documentation is executed: Python blocks of README and docs, every example, every recipe, every named command."""

import re
import runpy
import sys
from pathlib import Path

import pytest

from featherweight.methods.named import methods
from featherweight.optim import optimizers
from featherweight.training.recipe import Recipe
from featherweight.training.task import tasks

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
RECIPES = sorted((ROOT / "examples" / "recipes").glob("*.yaml"))
NEEDS = {"launch_ray.py": "ray"}
"""Packages that no extra installs; an example whose package is not here is left out."""
ARGUMENTS = {"plain_loop.py": ["--steps", "5"], "huggingface_trainer.py": ["--steps", "4"]}


def blocks(language):
    """Return (page:line, text) of every fenced block of a language; a block marked `no-run` is only shown."""
    found = []
    for page in PAGES:
        text = page.read_text()
        for match in re.finditer(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            line = text[: match.start()].count("\n") + 1
            found.append(pytest.param(match[1], id=f"{page.relative_to(ROOT)}:{line}"))
    return found


@pytest.mark.parametrize("code", blocks("python"))
def test_python_block_runs(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "<docs>", "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_example_runs_and_is_short(path, tmp_path, monkeypatch):
    if "galore_torch" in path.read_text():
        pytest.importorskip("galore_torch", exc_type=ImportError)
    if path.name in NEEDS:  # those start clusters, and have a test of their own
        pytest.skip(f"needs {NEEDS[path.name]}")
    for registry in (tasks, methods, optimizers):  # an example may register things of its own
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(path), *ARGUMENTS.get(path.name, [])])
    runpy.run_path(str(path), run_name="__main__")
    assert len(path.read_text().splitlines()) < 80


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_recipe_is_complete_and_valid(path):
    recipe = Recipe.from_file(path)
    recipe.task_config()
    recipe.optimizer_config()


def test_every_link_to_a_file_of_the_project_leads_somewhere():
    broken = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in PAGES
        for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text())
        if "://" not in target and not (page.parent / target).exists()
    ]
    assert not broken


def test_every_named_command_and_script_exists():
    from typer.main import get_command

    from featherweight.cli import app

    commands = set(get_command(app).commands)
    text = "\n".join(page.read_text() for page in PAGES)
    assert set(re.findall(r"`?fw ([a-z]+)", text)) <= commands
    assert all((ROOT / "scripts" / name).exists() for name in re.findall(r"scripts/([a-z]+)", text))


def test_every_named_benchmark_and_test_exists():
    text = "\n".join(page.read_text() for page in PAGES)
    named = {f"benchmarks/bench_{topic}.py" for topic in re.findall(r"scripts/bench ([a-z0-9_]+)", text)}
    named |= set(re.findall(r"\b(?:tests|benchmarks)/[\w/]+\.py", text))
    assert not [path for path in named if not (ROOT / path).is_file()]


PAPERS = sorted(path for path in (ROOT / "docs" / "papers").glob("*.md") if path.name != "index.md")


def test_every_paper_has_its_citation_its_claims_and_where_ours_differs():
    index = (ROOT / "docs" / "papers" / "index.md").read_text()
    for path in PAPERS:
        page = path.read_text()
        assert "](https://arxiv.org/abs/" in page and "\n## Where ours differs\n" in page, path.name
        rows = [line for line in page.splitlines() if line.startswith("| ")]
        assert len(rows) > 5 and {line.count(" | ") for line in rows} == {3}, path.name
        assert all("| **" in line for line in rows[1:]), path.name  # a verdict in each
        assert f"]({path.name})" in index, path.name
    assert len(PAPERS) == 10


def test_every_public_name_of_the_optimizers_is_documented():
    import featherweight as fw

    text = "\n".join(page.read_text() for page in PAGES)
    missing = [name for name in [*fw.optim.__all__, *fw.s2ft.__all__, *fw.__all__[1:]] if name not in text]
    assert not missing


@pytest.mark.parametrize("name", ["WeLore", "InRank"])
def test_every_option_of_a_method_stands_on_its_page(name):
    import featherweight as fw

    page = (ROOT / "docs" / f"{name.lower()}.md").read_text()
    assert not [key for key in getattr(fw, name).model_fields if key not in page]


def test_the_page_of_the_data_says_of_every_key_what_its_docstring_says():
    from featherweight.text.chat_task import ChatConfig
    from featherweight.text.formats import FORMATS
    from featherweight.text.preference_task import PreferenceConfig

    page = " ".join((ROOT / "docs" / "data.md").read_text().split())
    for key, field in [*ChatConfig.model_fields.items(), *PreferenceConfig.model_fields.items()]:
        meaning = " ".join(field.description.replace("None", "null").split())
        assert f"| `{key}` |" in page and f"| {meaning} |" in page, key
    assert all(f"| `{one.name}` |" in page for one in FORMATS)


OPTIMIZERS = [
    "adamw",
    "galore",
    "fira",
    "apollo",
    "ldadam",
    "gum",
    "scale",
    "galore_adafactor",
    "q_galore",
    "tensor_galore",
]
"""One of each family."""


@pytest.mark.parametrize(
    "name",
    ["Recipe", "Schedule", "TextConfig", "InstructionConfig", "ClassificationConfig", "PdeConfig", "S2FT", *OPTIMIZERS],
)
def test_recipe_reference_says_of_every_key_what_its_docstring_says(name):
    from featherweight.methods.s2ft.method import S2FT
    from featherweight.optim import optimizers
    from featherweight.pde.options import PdeConfig
    from featherweight.text.classification_task import ClassificationConfig
    from featherweight.text.instruction_task import InstructionConfig
    from featherweight.text.task import TextConfig
    from featherweight.training.schedule import Schedule

    tasks = (TextConfig, InstructionConfig, ClassificationConfig, PdeConfig)
    configs = {config.__name__: config for config in (Recipe, Schedule, *tasks, S2FT)}
    configs |= {name: optimizers.get(name).config for name in OPTIMIZERS}
    assert {optimizers.get(name).config for name in optimizers.names()} <= set(configs.values())
    page = " ".join((ROOT / "docs" / "recipes.md").read_text().split())
    for key, field in configs[name].model_fields.items():
        meaning = " ".join(field.description.replace("None", "null").split())
        assert f"| `{key}` |" in page and f"| {meaning} |" in page, key
    assert all(f"`{name}`" in page for name in optimizers.names())
