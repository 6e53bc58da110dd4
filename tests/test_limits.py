"""No file above 450 lines, no function above 80; what is larger is named here with its reason."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1] / "featherweight"
LONGEST_FILE, LONGEST_FUNCTION = 450, 80

FILES: dict[str, str] = {}
FUNCTIONS = {"cli/plan.py plan": "typer reads the options of a command from its signature"}


def sources():
    return {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in sorted(ROOT.rglob("*.py"))}


def test_no_file_is_longer_than_the_limit():
    found = {name: text.count("\n") for name, text in sources().items()}
    too_long = {name: lines for name, lines in found.items() if lines > LONGEST_FILE and name not in FILES}
    assert not too_long, f"longer than {LONGEST_FILE} lines: {too_long}; split them by concept"
    assert FILES.keys() <= found.keys(), "an exception names a file that is gone"


def test_no_function_is_longer_than_the_limit():
    found = {
        f"{name} {node.name}": node.end_lineno - node.lineno + 1
        for name, text in sources().items()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    too_long = {name: lines for name, lines in found.items() if lines > LONGEST_FUNCTION and name not in FUNCTIONS}
    assert not too_long, f"longer than {LONGEST_FUNCTION} lines: {too_long}; split them"
    assert FUNCTIONS.keys() <= found.keys(), "an exception names a function that is gone"
