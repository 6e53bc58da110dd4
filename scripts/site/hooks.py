"""What MkDocs asks while it builds the site: pages made from the code, and links that lead out of `docs/`.

Generated: the reference of the command line (from typer), of the packages (from the docstrings), the example recipes,
the changelog and how to contribute. They are never written to the disk, so that they cannot go stale.
"""

import ast
import importlib
import inspect
import logging
import os
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PACKAGES = {
    name: f"featherweight.{name}"
    for name in (
        "optim",
        "methods",
        "models",
        "training",
        "planner",
        "memory",
        "report",
        "text",
        "pde",
        "bev",
        "robot",
        "guard",
    )
} | {"s2ft": "featherweight.methods.s2ft", "kernels": "featherweight.kernels"}
"""Name of a page of the reference -> the package whose public names it shows."""
REPOSITORY = os.environ.get("FEATHERWEIGHT_REPOSITORY", "").rstrip("/")
"""Where files outside of `docs/` can be read, such as https://github.com/OWNER/NAME/blob/main; else they are named."""
PAGES_OF = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md", "README.md": "index.md"}
PAGES_OF |= {"examples/recipes": "example_recipes.md"}


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages."""
    from mkdocs.structure.files import File

    for handler in logging.getLogger("mkdocs").handlers:
        handler.addFilter(_is_about_a_name)
    pages = {
        "changelog.md": (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"),
        "contributing.md": (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"),
        "example_recipes.md": recipes_page(),
        "reference/cli.md": command_page(),
        "reference/featherweight.md": package_page("featherweight"),
        **{f"reference/{name}.md": package_page(package) for name, package in PACKAGES.items()},
    }
    for uri, content in pages.items():
        files.append(File.generated(config, uri, content=content))
    return files


def _is_about_a_name(record: logging.LogRecord) -> bool:
    """Keep brackets that follow each other, as in hf:name[:config][:split], from being called a broken reference."""
    return re.search(r"cross-reference target '[^A-Za-z_]", record.getMessage()) is None


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Turn links to files of the repository into links to their pages, to the repository, or into their names."""
    folder = "" if page.file.src_uri in PAGES_OF.values() and page.file.src_uri != "index.md" else "docs"
    here = posixpath.dirname(page.file.src_uri)

    def mend(match: re.Match[str]) -> str:
        text, target = match[1], match[2]
        path, hash_sign, anchor = target.partition("#")
        if "://" in target or not path or target.startswith("mailto:"):
            return match[0]
        place = posixpath.normpath(posixpath.join(folder, here, path))
        if place.startswith("docs/"):
            return f"[{text}]({posixpath.relpath(place[5:], here or '.')}{hash_sign}{anchor})"
        if place in PAGES_OF:
            return f"[{text}]({posixpath.relpath(PAGES_OF[place], here or '.')}{hash_sign}{anchor})"
        if not (ROOT / place).exists():
            return match[0]  # the build refuses it by name
        if REPOSITORY:
            return f"[{text}]({REPOSITORY}/{place})"
        return f"`{place}`" if text.strip("`") == place else f"{text} (`{place}`)"

    # "python no-run" tells the tests of the docs something; a page would show the fence as text.
    markdown = re.sub(r"^(```\w+) no-run$", r"\1", markdown, flags=re.MULTILINE)
    parts = re.split(r"(^```.*?^```)", markdown, flags=re.MULTILINE | re.DOTALL)
    link = re.compile(r"(?<!!)\[([^\]\n]+)\]\(([^)\s]+)\)")
    return "".join(part if part.startswith("```") else link.sub(mend, part) for part in parts)


def recipes_page() -> str:
    """Return every example recipe with the comment at its top."""
    lines = [
        "# Example recipes",
        "",
        "They ship with the package: `fw init --example NAME` writes one to `NAME.yaml`. Each key is explained in "
        "[recipes](recipes.md).",
    ]
    for path in sorted((ROOT / "examples" / "recipes").glob("*.yaml")):
        lines += ["", f"## {path.stem}", "", "```yaml", path.read_text(encoding="utf-8").rstrip(), "```"]
    return "\n".join([*lines, ""])


def command_page() -> str:
    """Return the reference of the command line."""
    import typer

    from featherweight.cli import app

    lines = ["# Command line", "", "`fw` is also called `featherweight`; `fw COMMAND --help` says the same."]
    lines += ["Exit codes: 0 done, 1 failed, 2 bad input, 130 interrupted."]
    for words, command in _commands(typer.main.get_command(app), "fw"):
        heading = f"{'#' * (words.count(' ') + 1)} {words}" if " " in words else ""
        lines += ["", heading, "", *_help_lines(command.help or "")]
        arguments = [one for one in command.params if one.param_type_name == "argument"]
        options = [one for one in command.params if one.param_type_name == "option" and not one.hidden]
        if arguments:
            lines += ["", "| argument | meaning |", "|---|---|"]
            lines += [f"| `{_cell(one.metavar or one.name.upper())}` | {_cell(one.help or '')} |" for one in arguments]
        if options:
            lines += ["", "| option | meaning | default |", "|---|---|---|"]
            lines += [_option_row(one) for one in options]
    return "\n".join([*lines, ""])


def _commands(command: Any, words: str) -> Iterator[tuple[str, Any]]:
    """Yield a command and those below it, with the words that call them."""
    yield words, command
    for name, child in getattr(command, "commands", {}).items():
        if not child.hidden:
            yield from _commands(child, f"{words} {name}")


def _help_lines(text: str) -> list[str]:
    """Return help as Markdown: bold titles, and examples as code."""
    blocks = [block.strip() for block in re.split(r"\n\s*\n", inspect.cleandoc(text))]
    lines: list[str] = []
    for block in blocks:
        if re.match(r"(fw|echo|cat) ", block):
            # Examples stand in one box, a line each.
            lines = [*lines[:-2], block, "```", ""] if lines[-2:] == ["```", ""] else [*lines, "```", block, "```", ""]
        else:
            lines += [_plain(re.sub(r"\[bold\](.*?)\[/bold\]", r"**\1**", block)), ""]
    return lines


def _option_row(option: Any) -> str:
    names = ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))
    default = option.default
    shown = (
        "" if default is None or default is False or callable(default) or default in ((), [], "") else f"`{default}`"
    )
    return f"| {names} | {_cell(option.help or '')} | {_cell(shown)} |"


def _cell(text: str) -> str:
    return _plain(" ".join(text.split())).replace("|", "\\|")


def _plain(text: str) -> str:
    """Keep Markdown from reading angle brackets as HTML."""
    return text.replace("<", "&lt;")


def package_page(package: str) -> str:
    """Return a page that lets mkdocstrings write about every public name of a package."""
    module = importlib.import_module(package)
    title = package.removeprefix("featherweight.")
    # The package's own words are shown by name, so that names of other pages in it become links.
    lines = [f"# {package if title != package else 'featherweight (fw)'}", "", _plain(_first_paragraph(module)), ""]
    for name in sorted(module.__all__, key=str.lower):
        value = getattr(module, name)
        if inspect.ismodule(value) or name.startswith("__"):
            continue
        place = _place(value, module, name)
        elsewhere = _page_of(name, place, package)
        if elsewhere:
            lines += ["", f"- `{name}`: see [{elsewhere}]({elsewhere}.md#{place})"]
        elif place:
            lines += ["", f"::: {place}"]
    return "\n".join([*lines, ""])


def _page_of(name: str, place: str, package: str) -> str | None:
    """Return the page of a lower package that shows a name already, if there is one: each has one page."""
    fitting = {
        page: other
        for page, other in PACKAGES.items()
        if place.startswith(f"{other}.") and name in importlib.import_module(other).__all__
    }
    page = max(fitting, key=lambda one: len(fitting[one]), default=None)
    return page if page is not None and fitting[page] != package else None


def _first_paragraph(module: Any) -> str:
    return inspect.cleandoc(module.__doc__ or "").partition("\n\n")[0].replace("\n", " ")


def _place(value: Any, module: Any, name: str) -> str:
    """Return the full name of where something is defined; of a plain value, where its package imports it from."""
    home, qualified = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    if isinstance(home, str) and isinstance(qualified, str) and home.startswith("featherweight"):
        return f"{home}.{qualified}"
    lazy = getattr(module, "_LAZY", {})
    if name in lazy:
        # `featherweight.robot` names its modules from its own folder on.
        return f"{lazy[name] if lazy[name].startswith('featherweight') else f'{module.__name__}.{lazy[name]}'}.{name}"
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        if isinstance(node, ast.ImportFrom) and any(one.name == name for one in node.names):
            return f"{module.__name__}.{node.module}.{name}" if node.level else f"{node.module}.{name}"
    return f"{module.__name__}.{name}"
