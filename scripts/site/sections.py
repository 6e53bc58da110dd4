"""How docstrings of this project become sections of a page: what griffe is told before it reads them.

The house writes sections without blank lines between them, and `Cost:`, `Source:` and `Shapes:` on one line with their
text. griffe takes a section that follows a line of text as a part of that text, so that all would run together.
"""

import re
from typing import Any

import griffe

SECTIONS = ("Args", "Attributes", "Returns", "Yields", "Raises", "Example", "Examples")
"""Titles that stand alone on their line; what belongs to them is indented."""
_TITLE = re.compile(rf"({'|'.join(SECTIONS)}):$")
_REMARK = re.compile(r"(Cost|Sources?(?: of [^:]{1,60})?|Shapes|Differs from the paper): (?=\S)")


def spaced(text: str) -> str:
    r"""Return a docstring with a blank line above each section, and with remarks as paragraphs that begin in bold.

    Example:
        >>> print(spaced("Add.\nReturns:\n    The sum.\nCost: one addition."))
        Add.
        <BLANKLINE>
        Returns:
            The sum.
        <BLANKLINE>
        **Cost:** one addition.
    """
    lines: list[str] = []
    fenced = False
    for line in text.split("\n"):
        fenced ^= line.startswith("```")
        title, remark = _TITLE.match(line), _REMARK.match(line)
        if not fenced and (title or remark):
            if lines and lines[-1].strip():
                lines.append("")
            if title and title[1] == "Example":
                line = "Examples:"  # the word that griffe knows for code with its output
            elif remark:
                line = f"**{remark[1]}:** {line[remark.end() :]}"
        # Two colons announce a box of code to Sphinx; here the indentation does.
        lines.append(line if fenced or not line.endswith("::") else line[:-1])
    return "\n".join(lines)


class Sections(griffe.Extension):
    """Gives every docstring its blank lines."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Change the docstring of a module, class, function or attribute once it has been read."""
        if obj.docstring is not None:
            obj.docstring.value = spaced(obj.docstring.value)
