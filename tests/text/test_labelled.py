"""Rows become texts with classes; what cannot is refused with file and line."""

import pytest

from featherweight.errors import ConfigError
from featherweight.text.labelled import class_names, labelled_texts

PLACE = "a.csv, line 2"


def read(*rows, **options):
    return list(labelled_texts([(PLACE, row) for row in rows], **options))


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"text": " a ", "label": "x y"}, (" a ", None, "x y")),
        ({"Sentence1": "a", "SENTENCE2": "b", "Label": 0}, ("a", "b", "0")),
        ({"premise": "a", "hypothesis": "b", "label": 2.0}, ("a", "b", "2")),
        ({"utterance": "a", "intent": True, "idx": 5}, ("a", None, "true")),
    ],
)
def test_columns_are_found_under_their_usual_names_and_nothing_is_stripped(row, expected):
    (found,) = read(row)
    assert (found.text, found.pair, found.label) == expected and found.where == PLACE


def test_columns_of_other_names_are_mapped():
    (found,) = read({"satz": "a", "text": "b", "art": 1}, columns={"text": "satz", "pair": "text", "label": "art"})
    assert (found.text, found.pair, found.label) == ("a", "b", "1")


@pytest.mark.parametrize(
    ("row", "options", "message"),
    [
        ({"text": "a"}, {}, "columns=text have no label; expected one called label/.*columns: {label: text}"),
        ({"words": "a", "label": 1}, {}, "have no text; expected one called text/"),
        ({"text": "a", "label": 1}, {"columns": {"pair": "b"}}, "have no pair; expected one called b"),
        ({"text": "  ", "label": 1}, {}, "text='  ' is empty"),
        ({"text": None, "label": 1}, {}, "text=None is a NoneType"),
        ({"text": "a", "pair": "", "label": 1}, {}, "pair='' is empty"),
        ({"text": "a", "label": 0.5}, {}, "label=0.5 is no class; expected a word or a whole number"),
        ({"text": "a", "label": None}, {}, "label=None is no class"),
        ({"text": "a", "label": 1, "note": "lost words"}, {}, "column='note' carries text .*ignore_columns"),
        ("a", {}, "the row is a str"),
    ],
)
def test_what_is_no_labelled_text_is_refused_with_its_place(row, options, message):
    with pytest.raises(ConfigError, match=f"^{PLACE}: .*{message}"):
        read(row, **options)


def test_a_field_that_does_not_exist_is_refused():
    with pytest.raises(ConfigError, match="columns='lable' is no field.*Did you mean 'label'"):
        read({"text": "a", "label": 1}, columns={"lable": "x"})


def test_columns_with_text_can_be_left_out_on_purpose():
    assert len(read({"text": "a", "label": 1, "note": "words"}, ignore_columns=["note"])) == 1


def test_classes_are_ordered_by_size_by_name_or_as_the_model_has_them():
    assert class_names(["10", "9", "-1"]) == ("-1", "9", "10")
    assert class_names(["10", "b", "9"]) == ("10", "9", "b")
    assert class_names(["x", "y"], ("y", "x")) == ("y", "x")
    assert class_names(["x", "z"], ("y", "x")) == ("x", "z")
