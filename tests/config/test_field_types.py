from typing import Any

from featherweight.config import Config
from featherweight.config.field_types import field_at, known_keys, may_be_mapping, user_path


class Inner(Config):
    rank: int = 1
    """Rank."""


class Outer(Config):
    one: Inner | int = 3
    """One or a number."""
    many: list[Inner] = []
    """Several."""
    free: dict[str, Any] = {}
    """Anything."""


def test_keys_are_known_below_settings_and_free_below_a_dict():
    assert known_keys(Outer, []) == ["one", "many", "free"]
    assert known_keys(Outer, ["one"]) == known_keys(Outer, ["many", 0]) == ["rank"]
    assert known_keys(Outer, ["free"]) is None
    assert known_keys(Outer, ["one", "rank"]) is None


def test_a_place_may_hold_a_mapping_if_one_of_its_types_does():
    assert may_be_mapping(Outer, ["one"]) and may_be_mapping(Outer, ["free"])
    assert not may_be_mapping(Outer, ["one", "rank"])


def test_the_branch_of_a_union_is_no_part_of_what_a_user_wrote():
    assert user_path(Outer, ["one", "Inner", "rank"], last_is_key=False) == ("one", "rank")
    assert user_path(Outer, ["one", "Inner", "rnak"], last_is_key=True) == ("one", "rnak")


def test_a_field_is_found_at_its_path():
    assert field_at(Outer, ["many", 0, "rank"]).description == "Rank."
    assert field_at(Outer, ["many", 0, "no"]) is None
