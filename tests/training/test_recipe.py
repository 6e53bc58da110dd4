import pytest

from featherweight.errors import ConfigError
from featherweight.training.recipe import Recipe, load_recipe
from featherweight.training.resume import differences, resume_conflicts


def test_a_recipe_survives_its_file(recipe, tmp_path):
    one = recipe(schedule={"name": "linear", "warmup_steps": 2}, trackers=["tensorboard"], max_grad_norm=None)
    one.to_file(tmp_path / "recipe.yaml")
    assert Recipe.from_file(tmp_path / "recipe.yaml") == one


def test_a_name_alone_stands_for_task_optimizer_and_schedule(recipe):
    one = recipe(task="regression", optimizer="galore_8bit", schedule="constant")
    assert (one.task, one.optimizer, one.schedule.name) == (
        {"name": "regression"},
        {"name": "galore_8bit"},
        "constant",
    )


def test_an_override_reaches_an_option_of_an_optimizer_given_by_name(recipe):
    one = load_recipe(recipe(optimizer="galore"), ["optimizer.rank=64", "steps=9"])
    assert one.optimizer_config().rank == 64 and one.steps == 9


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"stpes": 3}, "stpes=3 is unknown; expected a known key. Did you mean 'steps'?"),
        ({"steps": 0}, "steps=0 is out of range; expected > 0"),
        ({"methods": ["mts"]}, "name='mts' is unknown; .* Did you mean 'mst'?"),
        ({"methods": [{"mst": {"chunk": 5}}]}, "chunk=5 is unknown; expected a known key. Did you mean 'chunk_size'?"),
        ({"methods": ["mst", "mst"]}, "mst stands twice; expected each method once"),
        ({"optimizer": {"lr": 1.0}}, "has no name; expected a mapping with the key 'name'"),
        ({"memory_steps": [0]}, "memory_steps.0=0 is out of range|memory_steps"),
        ({"schedule": {"warmup_steps": 9}}, "schedule.warmup_steps=9 is longer than the run; expected at most steps=8"),
        ({"precision": "fp16"}, "precision='fp16' is not allowed; expected 'fp32', 'bf16' or 'bf16_autocast'"),
    ],
)
def test_a_wrong_setting_is_one_clear_sentence(recipe, changes, sentence):
    with pytest.raises(ConfigError, match=sentence) as caught:
        recipe(**changes)
    assert "\n" not in str(caught.value)


def test_wrong_names_and_options_of_task_and_optimizer_are_found_without_building_anything(recipe):
    with pytest.raises(ConfigError, match="name='regresion' is unknown.*Did you mean 'regression'"):
        recipe(task="regresion").task_config()
    with pytest.raises(ConfigError, match="hiden=3 is unknown.*Did you mean 'hidden'"):
        recipe(task={"name": "regression", "hiden": 3}).task_config()
    with pytest.raises(ConfigError, match="rank=0 is out of range; expected > 0"):
        recipe(optimizer={"name": "galore", "rank": 0}).optimizer_config()
    with pytest.raises(ConfigError, match="name='galor' is unknown.*Did you mean 'galore'"):
        recipe(optimizer="galor").optimizer_config()


def test_a_missing_file_names_the_nearest_one(recipe, tmp_path):
    recipe().to_file(tmp_path / "demo.yaml")
    with pytest.raises(ConfigError, match="dmeo.yaml does not exist.*Did you mean 'demo.yaml'"):
        load_recipe(tmp_path / "dmeo.yaml")


def test_only_keys_that_change_no_number_may_differ_on_resume(recipe):
    old = recipe().to_dict()
    reporting = recipe(log_every=3, evaluate_every=2, checkpoint_every=1, keep_checkpoints=5, trackers=["tensorboard"])
    assert resume_conflicts(old, reporting.to_dict()) == []
    assert resume_conflicts(old, recipe(steps=9, seed=1).to_dict()) == ["seed: 0 -> 1"]
    # A nested key of the same name as a free one is not free.
    assert resume_conflicts({"task": {"name": "a"}}, {"task": {"name": "b"}}) == ["task.name: a -> b"]


def test_differences_name_keys_that_stand_on_one_side_only():
    assert differences({"a": {"b": 1}}, {"a": {"c": 2}}) == ["a.b: 1 -> absent", "a.c: absent -> 2"]


def test_another_optimizer_on_the_command_line_keeps_the_options_that_both_share(recipe):
    base = recipe(optimizer={"name": "galore_8bit", "rank": 3, "lr": 0.02})
    assert base.override(["optimizer=galore"]).optimizer == {"name": "galore", "rank": 3, "lr": 0.02}
    assert base.override(["optimizer=galore", "optimizer.rank=2"]).optimizer["rank"] == 2
    assert base.override(["optimizer.rank=2", "optimizer=galore"]).optimizer["rank"] == 2
    assert base.override(["optimizer=adamw"]).optimizer == {"name": "adamw"}
