import pytest
from listeners import Record

from featherweight.errors import CheckpointError, ConfigError
from featherweight.training.metrics import read_metrics
from featherweight.training.resume import find_run
from featherweight.training.run import train
from featherweight.training.schedule import lr_factor


def rates(folder):
    return [line["lr"] for line in read_metrics(folder / "metrics.jsonl") if line["event"] == "step"]


def test_a_finished_run_goes_on_with_more_steps_under_the_schedule_of_the_new_length(recipe, tmp_path):
    one = recipe(checkpoint_at_end=True, schedule={"warmup_fraction": 0.25})
    first = train(one, out=tmp_path / "run", callbacks=[])
    notices = []

    class Listen(Record):
        def on_notice(self, event):
            notices.append(event.notice)

    longer = train(one, overrides=["steps=12"], out=tmp_path / "run", resume=True, callbacks=[Listen()])
    assert longer.summary.steps == 12 and longer.folder == first.folder
    expected = [lr_factor(one.schedule, step, 8) for step in range(8)]
    expected += [lr_factor(one.schedule, step, 12) for step in range(8, 12)]
    assert rates(tmp_path / "run") == pytest.approx([0.01 * factor for factor in expected], rel=1e-12)
    assert notices[0].startswith("steps: 8 -> 12: from step 9 on, the learning rate is that of a run of 12 steps")
    # The order of the data does not depend on the length, so a constant rate gives the run of 12 steps, bit by bit.
    assert (tmp_path / "run" / "summary-step-8.json").is_file()
    constant = recipe(checkpoint_at_end=True, schedule="constant", task={"name": "regression", "dropout": 0.2})
    train(constant, out=tmp_path / "parts", callbacks=[])
    train(constant, overrides=["steps=12"], out=tmp_path / "parts", resume=True, callbacks=[])
    through = train(constant, overrides=["steps=12"], out=tmp_path / "through", callbacks=[])
    losses = [
        [line["loss"] for line in read_metrics(folder / "metrics.jsonl") if line["event"] == "step"]
        for folder in (tmp_path / "parts", through.folder)
    ]
    assert losses[0] == losses[1]


def test_a_longer_run_that_dies_goes_on_as_the_longer_run(recipe, tmp_path):
    one = recipe(checkpoint_at_end=True, checkpoint_every=5)
    train(one, out=tmp_path / "run", callbacks=[])
    with pytest.raises(RuntimeError):
        train(one, overrides=["steps=12"], out=tmp_path / "run", resume=True, callbacks=[Record(stop_at=11)])
    again = train(one, overrides=["steps=12"], out=tmp_path / "run", resume=True, callbacks=[])
    whole = train(one, out=tmp_path / "whole", callbacks=[])
    whole = train(one, overrides=["steps=12"], out=tmp_path / "whole", resume=True, callbacks=[])
    assert again.summary.held_out == whole.summary.held_out


def test_what_may_not_change_is_named_and_fewer_steps_than_made_are_refused(recipe, tmp_path):
    one = recipe(checkpoint_at_end=True)
    train(one, out=tmp_path / "run", callbacks=[])
    with pytest.raises(CheckpointError, match="schedule.name: cosine -> linear.*Only steps, epochs and what is"):
        train(one, overrides=["schedule.name=linear", "steps=9"], out=tmp_path / "run", resume=True, callbacks=[])
    with pytest.raises(CheckpointError, match="steps=3 of the recipe are fewer than the 8"):
        train(one, overrides=["steps=3"], out=tmp_path / "run", resume=True, callbacks=[])
    assert (tmp_path / "run" / "summary.json").is_file(), "a refusal leaves the finished run as it was"
    bare = recipe(checkpoint_at_end=False)
    train(bare, out=tmp_path / "bare", callbacks=[])
    with pytest.raises(CheckpointError, match="differs \\(steps: 8 -> 9\\), and the run is finished without a check"):
        train(bare, overrides=["steps=9"], out=tmp_path / "bare", resume=True, callbacks=[])


def test_epochs_become_steps_and_a_stream_is_refused_with_the_way_out(recipe, tmp_path):
    # 24 rows, 4 * 2 rows a step: 1.5 epochs are 4.5 steps.
    one = recipe(steps=None, epochs=1.5, accumulation_steps=2)
    run = train(one, out=tmp_path / "run", callbacks=[])
    assert run.summary.steps == 5
    by_steps = train(recipe(steps=5, accumulation_steps=2), out=tmp_path / "steps", callbacks=[])
    assert by_steps.summary.held_out == run.summary.held_out
    with pytest.raises(ConfigError, match="epochs=2 cannot be counted.*Set steps instead of epochs"):
        train(recipe(steps=None, epochs=2, task={"name": "regression", "is_stream": True}), out=tmp_path / "stream")
    with pytest.raises(ConfigError, match="steps=8 and epochs=2.0 are both given; expected one of the two"):
        recipe(epochs=2)
    with pytest.raises(ConfigError, match="steps=None and epochs=None are both missing"):
        recipe(steps=None)
    assert recipe().override(["epochs=3"]).steps is None and one.override(["steps=3"]).epochs is None


def test_a_resume_without_a_folder_finds_the_newest_run_of_the_recipe_or_says_what_is_against_it(recipe, tmp_path):
    one = recipe(checkpoint_every=3)
    with pytest.raises(RuntimeError):
        train(one, out=tmp_path / "runs" / "demo-1", callbacks=[Record(stop_at=5)])
    train(one.override(["seed=1"]), out=tmp_path / "runs" / "demo-2", callbacks=[])
    found = find_run(one, "demo", tmp_path / "runs")
    assert (found.folder.name, found.step, found.is_finished) == ("demo-1", 3, False)
    assert found.sentence.endswith("demo-1 was not finished; its newest checkpoint is that of step 3.")
    with pytest.raises(CheckpointError, match=r"holds no run of this recipe.*demo-[12], differs \(seed: \d -> 5\)"):
        find_run(one.override(["seed=5"]), "demo", tmp_path / "runs")
