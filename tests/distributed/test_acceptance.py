"""The table of docs/distributed.md names tests that exist, and every file of this folder's claims is in it."""

import re
from pathlib import Path

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "distributed.md"


def test_every_claim_of_the_page_has_a_test_of_that_name():
    table = PAGE.read_text(encoding="utf-8").split("## What is tested, and where")[1]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if "`test_" in line]
    assert len(rows) > 20
    for claim, files, tests in rows:
        known = set()
        for file in files.split(", "):
            known |= set(re.findall(r"^def (test_\w+)", (HERE / file).read_text(encoding="utf-8"), re.MULTILINE))
        named = set(re.findall(r"`(test_\w+)`", tests))
        assert named and named <= known, (claim, named - known)
