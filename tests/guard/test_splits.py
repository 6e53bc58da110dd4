import pytest

from featherweight.errors import ConfigError
from featherweight.guard.splits import Rows, refuse_leakage, split_rows


def test_parts_have_their_shares_and_no_row_twice():
    parts = split_rows([""] * 100, 0, "rows")
    assert {name: len(rows) for name, rows in parts.items()} == {"fit": 60, "calibrate": 20, "test": 20}
    assert sorted(sum(parts.values(), [])) == list(range(100))
    assert parts == split_rows([""] * 100, 0, "rows") != split_rows([""] * 100, 1, "rows")


def test_a_group_stands_in_one_part():
    groups = [f"group {row % 7}" for row in range(70)]
    parts = split_rows(groups, 0, "rows")
    found = {name: {groups[row] for row in rows} for name, rows in parts.items()}
    assert not found["fit"] & found["calibrate"] and not found["fit"] & found["test"]


def test_rows_of_too_few_groups_are_refused():
    with pytest.raises(ConfigError, match="groups=2, too few"):
        split_rows(["a", "b"] * 20, 0, "harmful")


def test_a_prompt_in_two_parts_is_refused():
    with pytest.raises(ConfigError, match="stands in fit and in test"):
        refuse_leakage({"fit": [0], "test": [1]}, ["same", "same"])


def test_rows_are_found_by_part_and_kind():
    rows = Rows()
    rows.add([], "a", "harmful", "fit", "")
    rows.add([], "b", "benign", "test", "")
    assert rows.where("test", "benign", "harmful").tolist() == [False, True]
