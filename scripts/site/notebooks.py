"""Writes the notebooks of `examples/notebooks` from the Python files beside them, whose differences people can read.

usage: notebooks.py            the files are in the percent format that jupytext, VS Code and PyCharm open as notebooks
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[2] / "examples" / "notebooks"


def notebook_of(text: str) -> str:
    """Return the notebook of a Python file in the percent format, as JSON without outputs."""
    cells = []
    for number, part in enumerate(re.split(r"^# %%", text, flags=re.MULTILINE)[1:]):
        head, _, body = part.partition("\n")
        is_prose = "[markdown]" in head
        lines = body.strip("\n").splitlines(keepends=True)
        cell: dict[str, Any] = {"cell_type": "markdown" if is_prose else "code", "id": f"cell-{number}", "metadata": {}}
        if is_prose:
            lines = [re.sub(r"^# ?", "", line) for line in lines]
        else:
            cell |= {"execution_count": None, "outputs": []}
        cells.append({**cell, "source": lines})
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    content = {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    """Write every notebook."""
    for path in sorted(FOLDER.glob("*.py")):
        path.with_suffix(".ipynb").write_text(notebook_of(path.read_text(encoding="utf-8")), encoding="utf-8")
        sys.stdout.write(f"{path.with_suffix('.ipynb')}\n")


if __name__ == "__main__":
    main()
