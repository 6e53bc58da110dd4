import json

import pytest
from example_settings import Adam, Recipe, message_of
from hypothesis import given, settings
from hypothesis import strategies as st

from featherweight.config import read_mapping

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


def test_an_unwritable_folder_is_one_clear_sentence(tmp_path):
    (tmp_path / "file").write_text("")

    assert "cannot be written" in message_of(Adam().to_file, tmp_path / "file" / "adam.yaml")
    assert "suffix='' is unknown" in message_of(Adam().to_file, tmp_path / "adam")
