import json
import os
import pickle
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field, field_validator, model_validator

from featherweight.config import Config, cache_folder, read_mapping, write_atomically
from featherweight.errors import ConfigError


class Adam(Config):
    name: Literal["adam"] = "adam"
    """Which optimizer."""
    lr: float = Field(default=1e-3, gt=0, le=1)
    """Peak learning rate. Twice is too much."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of both moments, per step."""


class Galore(Config):
    name: Literal["galore"] = "galore"
    """Which optimizer."""
    rank: int | float = Field(default=128, gt=0)
    """Rank of the subspace, or a fraction of the smaller side."""
    state_bits: Literal[32, 8, 4] = 32
    """Bits of a stored moment."""


class Recipe(Config):
    steps: int = Field(ge=1)
    """Optimizer steps."""
    optimizer: Adam | Galore = Field(default=Adam(), discriminator="name")
    """How weights change."""
    either: Adam | int = 3
    """A union without discriminator."""
    warmup: Adam | None = None
    """None: no warm-up."""
    task: dict[str, Any] = {}
    """Options of the task, checked by the task."""
    stages: list[Galore] = []
    """One after the other."""
    out: Path | None = None
    """Folder; None: a new one."""
    compile: bool = False
    """Compile the model."""
    note: str = ""
    """Any text."""


def message_of(make, *arguments, **keywords):
    with pytest.raises(ConfigError) as caught:
        make(*arguments, **keywords)
    return str(caught.value)


# ---- what is refused, and in which words


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


def test_all_mistakes_stand_in_one_message():
    lines = message_of(Recipe.parse, {"stepz": 1, "compile": "no"}, where="r.yaml").splitlines()

    assert len(lines) == 3
    assert all(line.startswith("r.yaml: ") for line in lines)


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


# ---- override


def test_override_changes_nested_settings_and_leaves_the_original():
    recipe = Recipe(steps=1)

    changed = recipe.override(["optimizer.lr=1e-2", "steps=20", "optimizer.betas=[0, 0.5]", "compile=true"])

    assert (changed.optimizer.lr, changed.steps, changed.compile) == (0.01, 20, True)
    assert changed.optimizer.betas == (0.0, 0.5)
    assert recipe == Recipe(steps=1)


def test_override_adds_keys_to_plain_dicts_and_starts_what_is_none():
    changed = Recipe(steps=1).override(["task.corpus=a.txt", "task.packing.length=128", "warmup.lr=0.5"])

    assert changed.task == {"corpus": "a.txt", "packing": {"length": 128}}
    assert changed.warmup == Adam(lr=0.5)


def test_a_name_alone_takes_the_options_that_follow_it_and_other_text_does_not():
    changed = Recipe(steps=1).override(["task=text", "task.corpus=a.txt"])
    assert changed.task == {"name": "text", "corpus": "a.txt"}
    with pytest.raises(ConfigError, match="note='a' is text and has no key 'b'; expected a mapping"):
        Recipe(steps=1).override(["note=a", "note.b=1"])


def test_later_override_wins_and_values_may_hold_equal_signs():
    assert Recipe(steps=1).override(["note=a", "note=b=c"]).note == "b=c"


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("steps", "override='steps' is malformed; expected key=value"),
        ("=3", "malformed"),
        ("optimizer..lr=3", "malformed"),
        ("stepz=3", "stepz=3 is unknown; expected a known key. Did you mean 'steps'?"),
        ("optimizer.lrr=3", "optimizer.lrr=3 is unknown; expected a known key. Did you mean 'lr'?"),
        ("warmup.lrr=3", "Did you mean 'lr'?"),
        ("steps.x=3", "steps=1 is a whole number and has no key 'x'"),
        ("stages.0.rank=3", "stages=[] is a list and has no key '0'"),
        ("steps=[1", "steps=[1 is no YAML value"),
        ("steps=0", "steps=0 is out of range; expected >= 1"),
    ],
)
def test_override_refuses_with_the_reason(assignment, words):
    assert words in message_of(Recipe(steps=1).override, [assignment])


# ---- files

plain_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats() | plain_text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(plain_text, inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize("suffix", [".yaml", ".json"])
@settings(derandomize=True, max_examples=60, deadline=None)
@given(
    lr=st.floats(min_value=0, max_value=1, exclude_min=True),
    note=plain_text
    | st.sampled_from(["1e-3", "no", "~", "0x1f", "1:30", ".inf", "<<", "a: b", "\x85", "\u2028 ", " \n "]),
    task=st.dictionaries(plain_text, values, max_size=3),
)
def test_files_return_equal_settings(suffix, lr, note, task, tmp_path_factory):
    # Mutation: a dumper that follows YAML 1.1 writes the text "1e-3" without quotes, and it returns as a number.
    path = tmp_path_factory.mktemp("round_trip") / f"recipe{suffix}"
    recipe = Recipe(steps=7, optimizer=Adam(lr=lr), note=note, task=task)

    recipe.to_file(path)

    # repr, because NaN inside a free mapping differs from itself.
    assert repr(Recipe.from_file(path)) == repr(recipe)


def test_yaml_numbers_are_those_that_people_write(tmp_path):
    path = tmp_path / "numbers.yaml"
    path.write_text(
        "[1e-3, 1E5, 1.5e+3, .5, 2., 1_000, 0x1F, -3, .inf, 010, yes, 1:30, 2024-01-01, '3', true, ~, 1e, e3]".join(
            ["list: ", "\n"]
        )
    )

    assert read_mapping(path)["list"] == [
        *(0.001, 1e5, 1500.0, 0.5, 2.0, 1000, 31, -3, float("inf")),
        *("010", "yes", "1:30", "2024-01-01", "3", True, None, "1e", "e3"),
    ]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.yaml", "steps: 1\nsteps: 2\n", "key 'steps' stands twice, line 2"),
        ("a.json", '{"steps": 1, "steps": 2}', "key='steps' stands twice"),
        ("a.yaml", "steps: [1\n", "content is no YAML"),
        ("a.yaml", "steps: \x00\n", "content is no YAML"),
        ("a.yaml", "!!python/object:os.system {}", "content is no YAML"),
        ("a.json", '{"steps": 1,\n "x"}', "line=2 is no JSON"),
        ("a.yaml", "", "content is empty; expected a mapping"),
        ("a.yaml", "- 1\n", "content is a list; expected a mapping"),
        ("a.yaml", "steps", "content is text; expected a mapping"),
        ("a.json", "3", "content is a whole number; expected a mapping"),
        ("a.yaml", b"\xff\xfe\x00", "byte=0 is no UTF-8 text"),
        ("a.toml", "steps = 1", "suffix='.toml' is unknown; expected one of .yaml, .yml, .json"),
        ("a.yaml", "optimizer: {name: galore, rnak: 64}\nsteps: 1", "optimizer.rnak=64 is unknown"),
    ],
)
def test_a_broken_file_is_refused_with_its_path_and_one_clear_sentence(tmp_path, name, content, words):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())

    message = message_of(Recipe.from_file, path)

    assert message.startswith(f"{path}: ")
    assert words in message
    assert "\n" not in message


def test_a_missing_file_names_the_nearest_one_beside_it(tmp_path):
    (tmp_path / "recipe.yaml").write_text("steps: 1")

    assert "Did you mean 'recipe.yaml'?" in message_of(Recipe.from_file, tmp_path / "recpie.yaml")
    assert "Check the path." in message_of(Recipe.from_file, tmp_path / "no" / "recipe.yaml")


def test_a_folder_or_a_path_through_a_file_is_no_settings_file(tmp_path):
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "file").write_text("")

    assert "is a folder; expected a file" in message_of(Recipe.from_file, tmp_path / "folder.yaml")
    assert "cannot be read (Not a directory)" in message_of(Recipe.from_file, tmp_path / "file" / "a.yaml")


def test_writing_makes_missing_folders_and_leaves_no_temporary_file(tmp_path):
    Adam().to_file(tmp_path / "new" / "deep" / "adam.json")

    assert [path.name for path in (tmp_path / "new" / "deep").iterdir()] == ["adam.json"]
    assert json.loads((tmp_path / "new" / "deep" / "adam.json").read_text())["lr"] == 1e-3


def test_a_failed_write_keeps_the_old_file_and_says_why(tmp_path, monkeypatch):
    path = tmp_path / "adam.yaml"
    Adam(lr=0.5).to_file(path)

    def fail(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    assert "cannot be written (No space left on device)" in message_of(Adam(lr=0.25).to_file, path)

    assert Adam.from_file(path).lr == 0.5
    assert [entry.name for entry in tmp_path.iterdir()] == ["adam.yaml"]


def test_an_interrupted_write_leaves_no_temporary_file(tmp_path, monkeypatch):
    def interrupt(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "a.txt", "text")

    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_folder_is_one_clear_sentence(tmp_path):
    (tmp_path / "file").write_text("")

    assert "cannot be written" in message_of(Adam().to_file, tmp_path / "file" / "adam.yaml")
    assert "suffix='' is unknown" in message_of(Adam().to_file, tmp_path / "adam")


def test_cache_folder_follows_its_environment_variable(monkeypatch, tmp_path):
    monkeypatch.setenv("FEATHERWEIGHT_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("FEATHERWEIGHT_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "featherweight"
