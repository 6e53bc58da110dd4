"""The site: pages made from the code, links out of `docs/`, and the checker of links. The build itself is slow."""

import importlib
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

ROOT = Path(__file__).parent.parent


def load(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / "site" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def hooks():
    return load("hooks")


def pages_of(entry):
    if isinstance(entry, str):
        return [entry]
    return [page for one in (entry if isinstance(entry, list) else entry.values()) for page in pages_of(one)]


def test_every_page_stands_in_the_navigation_and_every_entry_is_a_page(hooks):
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    written = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    generated = {
        "changelog.md",
        "contributing.md",
        "example_recipes.md",
        "reference/cli.md",
        "reference/featherweight.md",
    }
    generated |= {f"reference/{name}.md" for name in hooks.PACKAGES}
    assert set(pages_of(nav)) == written | generated


def test_the_reference_of_the_command_line_names_every_command_option_and_example(hooks):
    from typer.main import get_command

    from featherweight.cli import app

    page = hooks.command_page()
    for name, command in get_command(app).commands.items():
        assert f"## fw {name}" in page
        for option in getattr(command, "params", []):
            assert option.hidden or f"`{option.opts[0]}`" in page or option.param_type_name == "argument"
    assert (
        "\nfw train recipe.yaml sharding=ddp --nproc 2\n```" in page and "| `RECIPE` |" in page and "[bold]" not in page
    )
    assert not re.search(r"<\w", page)


def test_the_reference_of_a_package_leads_to_every_public_name_where_it_is_defined(hooks):
    page = hooks.package_page("featherweight.report")
    assert "::: featherweight.report.report.Report\n" in page
    assert "::: featherweight.report.formatting.format_bytes\n" in page
    top = hooks.package_page("featherweight")
    assert "::: featherweight.nn.linear_cross_entropy.linear_cross_entropy\n" in top
    assert "`plan`: see [planner](planner.md#featherweight.planner.plan.plan)" in top


def test_every_place_that_the_reference_asks_for_is_there(hooks):
    for package in ("featherweight", *hooks.PACKAGES.values()):
        for place in re.findall(r"^::: (\S+)", hooks.package_page(package), re.MULTILINE):
            module, _, name = place.rpartition(".")
            assert hasattr(importlib.import_module(module), name), place


def test_every_example_recipe_stands_on_its_page(hooks):
    page = hooks.recipes_page()
    assert all(f"\n## {path.stem}\n" in page for path in (ROOT / "examples" / "recipes").glob("*.yaml"))


def test_links_to_files_of_the_repository_become_pages_or_names(hooks, monkeypatch):
    def mended(text, uri="tutorials/one.md"):
        return hooks.on_page_markdown(text, SimpleNamespace(file=SimpleNamespace(src_uri=uri)), None, None)

    assert mended("[a](../data.md#formats)") == "[a](../data.md#formats)"
    assert mended("[a](../../CHANGELOG.md)") == "[a](../changelog.md)"
    assert mended("[a](../../examples/plain_loop.py)") == "a (`examples/plain_loop.py`)"
    assert mended("[`LICENSE`](../../LICENSE)") == "`LICENSE`"
    assert mended("[a](docs/data.md)", "changelog.md") == "[a](data.md)"
    assert mended("![a](../images/x.png) [b](https://c.org)") == "![a](../images/x.png) [b](https://c.org)"
    assert mended("```\n[a](../../README.md)\n```") == "```\n[a](../../README.md)\n```"
    assert mended("```python no-run\nx\n```") == "```python\nx\n```"
    monkeypatch.setattr(hooks, "REPOSITORY", "https://host/blob/main")
    assert mended("[a](../../LICENSE)") == "[a](https://host/blob/main/LICENSE)"


def test_a_link_that_leads_nowhere_is_found(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "index.html").write_text(
        '<h1 id="top">x</h1><a href="sub/">a</a><a href="sub/#there">b</a><a href="#top">c</a>'
        '<a href="absent.html">d</a><a href="sub/#gone">e</a><img src="no.png"><a href="https://a.org/x#y">f</a>'
    )
    (tmp_path / "sub" / "index.html").write_text('<h2 id="there">y</h2><a href="../index.html#top">g</a>')
    broken, external = load("check").broken_links(tmp_path.resolve())
    assert [line.split()[1] for line in broken] == ["absent.html", "sub/#gone", "no.png"]
    assert external == {"https://a.org/x"}
    (tmp_path / "sub" / "index.html").write_text("<h2 id='there'>y</h2><p>```python x</p><pre><code>```</code></pre>")
    broken, _ = load("check").broken_links(tmp_path.resolve())
    assert [line for line in broken if "```" in line] == [
        "sub/index.html: ``` stands on the page; a box of code was not understood"
    ]


def test_sections_of_a_docstring_do_not_run_together():
    pytest.importorskip("griffe", reason="pip install 'featherweight[docs]'")
    import griffe

    text = "One.\n\nFormula::\n\n    y = x\n\nArgs:\n    x: it.\nReturns:\n    A pair:\n    two."
    text += "\nRaises:\n    ShapeError: no.\nCost: 2 FLOPs.\nSource: a page.\nExample:\n    >>> 1\n    1"
    options = {"returns_multiple_items": False, "warnings": False}
    sections = griffe.Docstring(load("sections").spaced(text)).parse("google", **options)
    kinds = [section.kind.value for section in sections]
    assert kinds == ["text", "parameters", "returns", "raises", "text", "examples"]
    assert sections[0].value.startswith("One.\n\nFormula:\n")
    assert [one.description for one in sections[2].value] == ["A pair:\ntwo."]
    assert sections[4].value == "**Cost:** 2 FLOPs.\n\n**Source:** a page."
    assert load("sections").spaced("```\nReturns:\n```") == "```\nReturns:\n```"


@pytest.mark.slow
def test_the_site_is_built_without_a_warning_and_without_a_broken_link(tmp_path):
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(tmp_path / "site")]
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert built.returncode == 0, built.stderr
    broken, _ = load("check").broken_links(tmp_path / "site")
    assert not broken
    assert len(list((tmp_path / "site").rglob("*.html"))) > 40
