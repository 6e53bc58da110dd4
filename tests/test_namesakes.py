"""tests/ mirrors featherweight/: the tests of optim/rules.py stand in optim/test_rules.py; what lacks them is named."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "featherweight"
ROOMS = sorted(path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists())

FLOOR = 0.85
"""The share of the sources of a room that have a namesake."""
LOWER_FLOORS: dict[str, float] = {}
"""Rooms whose tests stand by topic still; these shares may only grow."""


def sources(room):
    return sorted(path for path in (PACKAGE / room).rglob("*.py") if not path.name.startswith("__"))


def namesake(source):
    folder = source.relative_to(PACKAGE).parent
    return ROOT / "tests" / folder / f"test_{source.stem.lstrip('_')}.py"


@pytest.mark.parametrize("room", ROOMS)
def test_the_share_of_sources_with_a_test_of_their_name_does_not_fall(room):
    found = sources(room)
    lacking = [source for source in found if not namesake(source).exists()]
    share = 1 - len(lacking) / max(1, len(found))
    names = "\n".join(str(source.relative_to(ROOT)) for source in lacking)
    floor = LOWER_FLOORS.get(room, FLOOR)
    assert share >= floor, f"{room}: {share:.3f} of the sources have a test of their name; without one:\n{names}"


def test_sources_outside_of_the_rooms_have_a_test_of_their_name():
    assert [path.name for path in PACKAGE.glob("[!_]*.py") if not namesake(path).exists()] == []
