from example_settings import Adam, Recipe, message_of
from pydantic import field_validator, model_validator

from featherweight.config import Config
from featherweight.errors import ConfigError


def test_unknown_key_names_its_path_and_the_nearest_key():
    assert message_of(Recipe, steps=1, optimizer={"name": "galore", "rnak": 64}) == (
        "Recipe: optimizer.rnak=64 is unknown; expected a known key. Did you mean 'rank'?"
    )


def test_a_value_out_of_range_names_the_whole_range_and_the_meaning():
    assert message_of(Adam, lr=3.0) == (
        "Adam: lr=3.0 is out of range; expected > 0 and <= 1. Set it to an allowed value (lr: Peak learning rate)."
    )


def test_missing_key_is_named_with_its_meaning():
    assert message_of(Recipe) == "Recipe: steps is missing; expected a value. Give it one (steps: Optimizer steps)."


def test_all_mistakes_stand_in_one_message():
    lines = message_of(Recipe.parse, {"stepz": 1, "compile": "no"}, where="r.yaml").splitlines()

    assert len(lines) == 3
    assert all(line.startswith("r.yaml: ") for line in lines)


def test_sentence_of_a_validator_reaches_the_user_behind_place_and_value():
    class Even(Config):
        rank: int = 2
        """Rank."""

        @field_validator("rank")
        @classmethod
        def _check(cls, rank):
            if rank % 2:
                raise ValueError("is odd; expected an even number. Add one.")
            return rank

        @model_validator(mode="after")
        def _check_all(self):
            if self.rank > 10:
                raise ConfigError("rank=12 exceeds 10; expected less. Lower it.")
            return self

    assert message_of(Even, rank=3) == "Even: rank=3 is odd; expected an even number. Add one."
    assert message_of(Even, rank=12) == "Even: rank=12 exceeds 10; expected less. Lower it."
