import pickle
from pathlib import Path
from typing import Any

import pytest
from example_settings import Adam, Recipe, message_of
from hypothesis import strategies as st
from pydantic import model_validator

from featherweight.config import Config


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"steps": "3"}, "steps='3' is not allowed; expected a whole number."),
        ({"steps": True}, "steps=True is not allowed; expected a whole number."),
        ({"steps": 3.0}, "steps=3.0 is not allowed; expected a whole number."),
        ({"steps": None}, "steps=None is not allowed; expected a whole number."),
        ({"optimizer": {"name": "adam", "lr": "1e-3"}}, "optimizer.lr='1e-3' is not allowed; expected a number."),
        ({"optimizer": {"name": "adam", "lr": True}}, "optimizer.lr=True is not allowed; expected a number."),
        (
            {"optimizer": {"name": "adam", "lr": float("nan")}},
            "optimizer.lr=nan is not allowed; expected a finite number",
        ),
        ({"optimizer": {"name": "adam", "betas": [0.9]}}, "optimizer.betas.1 is missing"),
        ({"optimizer": {"name": "sgd"}}, "expected 'name' to be one of 'adam', 'galore'"),
        ({"optimizer": 3}, "optimizer=3 is not allowed; expected a mapping"),
        ({"optimizer": {"name": "galore", "state_bits": 16}}, "state_bits=16 is not allowed; expected 32, 8 or 4"),
        ({"optimizer": {"name": "galore", "rank": "x"}}, "expected a whole number or a number"),
        ({"stages": [{"rank": 1}, {"rank": 0}]}, "stages.1.rank=0 is out of range; expected > 0."),
        ({"stages": {"rank": 1}}, "expected a list"),
        ({"task": 3}, "task=3 is not allowed; expected a mapping"),
        ({"compile": "yes"}, "compile='yes' is not allowed; expected true or false"),
        ({"compile": 1}, "compile=1 is not allowed; expected true or false"),
        ({"note": 3}, "note=3 is not allowed; expected text"),
        ({"either": "x"}, "either='x' is not allowed; expected a mapping or a whole number"),
        ({"task": {"weights": object()}}, "cannot be stored in a file"),
    ],
)
def test_nothing_is_converted_silently(values, words):
    assert words in message_of(Recipe, **{"steps": 1, **values})


def test_a_list_is_fine_for_a_tuple_and_text_for_a_path():
    recipe = Recipe(steps=1, optimizer={"name": "adam", "betas": [0.5, 1]}, out="runs")

    assert recipe.optimizer.betas == (0.5, 1.0)
    assert recipe.out == Path("runs")


def test_parse_takes_built_settings_as_well_as_mappings():
    assert Recipe(steps=1, warmup=Adam(lr=0.5)) == Recipe.parse({"steps": 1, "warmup": {"lr": 0.5}})


@pytest.mark.parametrize("value", [None, [1], 3, "steps"])
def test_parse_refuses_what_is_no_mapping(value):
    assert "expected a mapping" in message_of(Recipe.parse, value)


def test_settings_are_frozen_in_words_that_name_the_way_out():
    adam = Adam()

    assert "override(['lr=...'])" in message_of(setattr, adam, "lr", 0.5)
    assert adam.lr == 1e-3


def test_settings_are_hashable_and_survive_pickling():
    adam = Adam(lr=0.5)

    assert pickle.loads(pickle.dumps(adam)) == adam
    assert hash(adam) == hash(Adam(lr=0.5)) != hash(Adam())


def test_a_validator_that_rewrites_its_input_keeps_lists_for_tuples():
    # Pydantic checks what a "before" validator returns as Python values, where its own strict mode refuses lists.
    class Short(Adam):
        @model_validator(mode="before")
        @classmethod
        def _add(cls, values):
            return {"betas": [0.1, 0.2], **values}

    assert Short(lr=0.5).betas == (0.1, 0.2)


def test_a_default_that_looks_like_a_schema_stays_as_it_is():
    class Free(Config):
        options: dict[str, Any] = {"type": "int"}
        """Anything."""

    assert Free().options == {"type": "int"}


plain_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats() | plain_text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(plain_text, inner, max_size=3),
    max_leaves=8,
)
