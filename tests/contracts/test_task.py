"""What every task must do, whoever wrote it: `featherweight.training.task.Task` names it, the registry lists them."""

import inspect
import json
from pathlib import Path

import pytest
import torch
from robot_demos import write_scene_episodes

from featherweight.errors import ConfigError
from featherweight.training.recipe import Recipe
from featherweight.training.task import Skeleton, Task, Words, tasks

tasks.register("regression", "regression_task:RegressionTask")

SMALL = {
    "regression": {},
    "bev": {"data": "world", "limit_sequences": 1},
    "pde": {"data": "darcy", "resolution": 12, "n_train": 12, "n_test": 4, "n_modes": [4, 4], "hidden_channels": 4},
    "text": {"model": "tiny", "seq_len": 32, "max_train_tokens": 1000, "max_held_out_tokens": 200},
    "chat": {"model": "tiny", "data": "questions.json", "held_out": 0.3, "template": "chatml"},
    "preference": {"model": "tiny", "data": "pairs.json", "held_out": 0.3, "template": "chatml"},
    "classification": {"model": "tiny", "data": "labelled.csv", "held_out": 0.3},
    "instructions": {"model": "tiny", "data": "questions.json", "held_out": 0.3},
    "robot": {"data": "demos", "chunk": 4, "hidden": 8, "layers": 1, "held_out": 0.3},
    "robot_act": {
        "data": "demos",
        "chunk_size": 4,
        "dim_model": 8,
        "n_heads": 2,
        "dim_feedforward": 8,
        "held_out": 0.3,
        # What is drawn in training makes two losses of one batch differ, as it should.
        "use_vae": False,
        "dropout": 0.0,
    },
}
"""Options that make each task small enough for these tests."""

every_task = pytest.mark.parametrize("name", tasks.names())


@pytest.fixture(scope="session")
def drawn_world(tmp_path_factory):
    """A drawn world for the task `bev`: every drive of nuScenes' small download, two frames each."""
    from featherweight.bev.synthetic.rig import WorldConfig
    from featherweight.bev.synthetic.world import write_world

    options = WorldConfig(scenes=10, frames=2, image_width=96, image_height=54)
    return write_world(tmp_path_factory.mktemp("contract") / "world", options)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch, drawn_world):
    """Work in a folder with a file of questions."""
    (tmp_path / "world").symlink_to(drawn_world)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rows = [{"question": f"{number} + 1 = ?", "answer": f"It is {number + 1}."} for number in range(12)]
    (tmp_path / "questions.json").write_text(json.dumps(rows))
    pairs = [
        {"prompt": f"{number} + 1 = ?", "chosen": "right", "rejected": "wrong" * number} for number in range(1, 25)
    ]
    (tmp_path / "pairs.json").write_text(json.dumps(pairs))
    write_scene_episodes(tmp_path / "demos", episodes=4, frames=6)
    words = ("ship", "boat", "tree")
    labelled = [f"the {words[number % 3]} of {number},{words[number % 3]}" for number in range(24)]
    (tmp_path / "labelled.csv").write_text("\n".join(["text,label", *labelled]))
    monkeypatch.chdir(tmp_path)


def build(name: str, seed: int = 3) -> Task:
    task_class = tasks.get(name)
    return task_class(task_class.Config.parse(SMALL[name]), seed=seed)


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@every_task
def test_a_task_has_the_members_of_the_base_class_with_their_arguments(name):
    assert issubclass(tasks.get(name), Task)
    for member, function in inspect.getmembers(Task, lambda one: inspect.isfunction(one) or inspect.ismethod(one)):
        if member.startswith("_") and member != "__init__":
            continue
        own = getattr(tasks.get(name), member)
        assert list(inspect.signature(own).parameters) == list(inspect.signature(function).parameters), member


@every_task
def test_skipping_micro_batches_equals_drawing_them(name):
    task = build(name)
    through = task.batches("train", micro_batch_size=4, seed=1)
    for _ in range(9):  # further than one epoch of each task
        next(through)
    assert same(next(through), next(task.batches("train", micro_batch_size=4, seed=1, start=9)))


@every_task
def test_another_seed_gives_another_order(name):
    task = build(name)
    first, again, other = (next(task.batches("train", micro_batch_size=4, seed=seed)) for seed in (1, 1, 2))
    assert same(first, again) and not same(first, other)


@every_task
def test_the_held_out_split_is_one_pass_in_fixed_order(name):
    task = build(name)
    once, again = (list(task.batches("held_out", micro_batch_size=2, seed=seed)) for seed in (0, 5))
    assert len(once) == len(again) > 0 and all(map(same, once, again))


@every_task
def test_processes_share_the_training_micro_batches_without_overlap(name):
    if name == "regression":
        pytest.skip("the task of the tests of the loop runs in one process alone")
    task = build(name)
    whole = task.batches("train", micro_batch_size=2, seed=1)
    shares = [task.batches("train", micro_batch_size=2, seed=1, process_rank=rank, world_size=2) for rank in (0, 1)]
    for turn in range(6):
        assert same(next(whole), next(shares[turn % 2]))
    with pytest.raises(ConfigError, match="process_rank=2"):
        next(task.batches("train", micro_batch_size=2, seed=1, process_rank=2, world_size=2))
    with pytest.raises(ConfigError, match="micro_batch_size=0"):
        next(task.batches("train", micro_batch_size=0, seed=1))


@every_task
def test_the_loss_is_a_float_sum_over_the_counted_items(name):
    task = build(name)
    torch.manual_seed(0)
    model = task.build_model()
    batch = next(task.batches("train", micro_batch_size=4, seed=0))
    loss, count = task.loss(model, batch)
    assert count == task.item_count(batch) >= 4
    assert loss.dtype == torch.float32 and loss.shape == () and loss.requires_grad
    halves = [
        task.loss(model, {key: tensor[part] for key, tensor in batch.items()})[0].item()
        for part in (slice(2), slice(2, 4))
    ]
    # A float32 sum in two parts instead of one.
    assert sum(halves) == pytest.approx(loss.item(), rel=1e-5)


@every_task
def test_an_evaluation_measures_the_held_out_loss_and_leaves_the_mode(name):
    task = build(name)
    model = task.build_model().train()
    metrics = task.evaluate(model, micro_batch_size=2)
    assert metrics["held_out_loss"] > 0 and model.training
    assert task.evaluate(model.eval(), micro_batch_size=2) == metrics and not model.training


@every_task
def test_the_same_seed_builds_the_same_model_whatever_was_drawn_before(name):
    if name == "regression":
        pytest.skip("its weights come from the global generator, which the loop seeds")
    first = build(name).build_model().state_dict()
    torch.rand(5)
    assert same(first, build(name).build_model().state_dict())


@every_task
def test_words_name_items_loss_and_metrics_that_an_evaluation_gives(name):
    task = build(name)
    words = task.words
    assert isinstance(words, Words) and words.items and words.loss
    assert words.rate_key == f"{words.count_key}_per_s" and " " not in words.count_key
    assert set(words.metrics) <= set(task.evaluate(task.build_model(), micro_batch_size=2))


@every_task
def test_a_description_and_a_saved_model_are_there_and_facts_are_plain(name):
    task = build(name)
    json.dumps(task.describe())
    task.save_model(task.build_model(), Path("saved"))
    assert any(Path("saved").iterdir())


@every_task
def test_pictures_are_files_in_the_folder_and_leave_the_model_as_it_was(name):
    task = build(name)
    model = task.build_model().train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    Path("run").mkdir()
    made = task.illustrate(model, Path("run"))
    assert all(path.is_file() and path.parent == Path("run") for path in made)
    assert model.training and same(before, model.state_dict())
    together = type(task).illustrate_together({"one": Path("run"), "two": Path("run")}, Path())
    assert len(together) == len(made) and all(path.is_file() for path in together)
    assert type(task).illustrate_together({"one": Path("elsewhere")}, Path()) == []


@every_task
def test_what_is_asked_of_the_class_needs_no_data(name):
    kind = tasks.get(name)
    config = kind.Config.parse(SMALL[name])
    assert kind.is_pretrained(config) is False
    assert isinstance(kind.run_name(config, "mine"), str)
    recipe = Recipe.parse({"task": {"name": name, **SMALL[name]}, "steps": 1, "micro_batch_size": 1}, where="recipe")
    assert recipe.task_class is kind
    assert kind.length_key is None or kind.length_key in kind.Config.model_fields


@every_task
def test_a_skeleton_has_batches_of_the_tasks_kind_and_refuses_what_needs_data(name):
    kind = tasks.get(name)
    config = kind.Config.parse(SMALL[name])
    skeleton = kind.skeleton(config, seed=0)
    if skeleton is None:
        return
    assert isinstance(skeleton, Skeleton)
    ours = next(skeleton.batches("train", micro_batch_size=2, seed=0))
    theirs = next(build(name).batches("train", micro_batch_size=2, seed=0))
    assert {key: value.dtype for key, value in ours.items()} == {key: value.dtype for key, value in theirs.items()}
    loss, count = skeleton.loss(skeleton.build_model(), ours)
    assert loss.requires_grad and count == skeleton.item_count(ours) > 0
    with pytest.raises(ConfigError, match="by shape alone"):
        skeleton.evaluate(skeleton.build_model(), micro_batch_size=1)
