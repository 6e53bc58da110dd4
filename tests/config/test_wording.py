import pytest

from featherweight.config.wording import kind_of, shorten


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "empty"),
        (True, "true or false"),
        (1, "a whole number"),
        (1.5, "a number"),
        ("a", "text"),
        ({}, "a mapping"),
        ((1,), "a list"),
        (object(), "of type object"),
    ],
)
def test_values_are_called_what_a_yaml_file_calls_them(value, words):
    assert kind_of(value) == words


def test_a_long_value_is_cut_and_a_short_one_is_not():
    assert shorten("a") == "'a'"
    assert shorten("a" * 100) == "'" + "a" * 56 + "..."
