"""tests/ mirrors featherweight/: the tests of optim/rules.py stand in optim/test_rules.py; what lacks them is named."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
FLOOR = 0.88
"""The share of sources with a namesake may only grow; the aim is 0.9."""


def sources():
    found = (ROOT / "featherweight").rglob("*.py")
    return sorted(path for path in found if not path.name.startswith("__"))


def namesake(source):
    folder = source.relative_to(ROOT / "featherweight").parent
    return ROOT / "tests" / folder / f"test_{source.stem.lstrip('_')}.py"


def test_the_share_of_sources_with_a_test_of_their_name_does_not_fall():
    lacking = [source for source in sources() if not namesake(source).exists()]
    share = 1 - len(lacking) / len(sources())
    names = "\n".join(str(source.relative_to(ROOT)) for source in lacking)
    assert share >= FLOOR, f"{share:.3f} of the sources have a test of their name; without one:\n{names}"
