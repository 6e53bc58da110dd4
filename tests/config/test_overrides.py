import pytest
from example_settings import Adam, Recipe, message_of

from featherweight.errors import ConfigError


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
        ("task={name:text}", "'name:text' without a space behind the colon; expected 'name: text'"),
        ("task={corpora: [{a:b}]}", "'a:b' without a space"),
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
