"""A launcher's restart that would run out of memory again ends at once."""

import pytest

import featherweight as fw
from featherweight.errors import OutOfMemoryError
from featherweight.training.out_of_memory import explain_out_of_memory, refuse_hopeless
from featherweight.training.recipe import load_recipe

RECIPE = {
    "task": {"name": "text", "model": "tiny", "corpus": "english", "seq_len": 16, "max_train_tokens": 2000},
    "optimizer": {"name": "adamw"},
    "steps": 2,
    "micro_batch_size": 2,
}


@pytest.fixture
def launched(monkeypatch):
    """Return a function that plays a launcher: it says how often it has started its processes anew."""

    def launch(restarts, name="run7"):
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", name)
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(restarts))

    return launch


def run_out(folder):
    with (
        pytest.raises(OutOfMemoryError, match="micro_batch_size=2"),
        explain_out_of_memory(load_recipe(RECIPE), folder),
    ):
        raise MemoryError


def test_the_second_time_from_one_checkpoint_on_ends_the_restarts(launched, tmp_path):
    # Mutations: the first time ends them; a new checkpoint, or a launch of its own, changes nothing.
    launched(0)
    refuse_hopeless(tmp_path)
    run_out(tmp_path)
    launched(1)
    refuse_hopeless(tmp_path)  # it may have been somebody else's memory
    run_out(tmp_path)
    launched(2)
    with pytest.raises(OutOfMemoryError, match="ran out 2 times between the start and the next one; .*not get better"):
        refuse_hopeless(tmp_path)
    launched(2, name="run8")
    refuse_hopeless(tmp_path)
    launched(0)
    refuse_hopeless(tmp_path)
    launched(1)
    refuse_hopeless(tmp_path)


def test_a_run_that_has_come_further_goes_on(launched, tmp_path):
    launched(0)
    fw.train({**RECIPE, "checkpoint_every": 1}, out=tmp_path / "a", callbacks=[])
    launched(1)
    run_out(tmp_path / "a")
    run_out(tmp_path / "a")
    with pytest.raises(OutOfMemoryError, match="between checkpoint .*2 and the next one"):
        refuse_hopeless(tmp_path / "a")
    newest = sorted((tmp_path / "a" / "checkpoints").iterdir())[-1]
    newest.rename(newest.with_name(newest.name.replace("2", "7")))  # as if it had got there
    refuse_hopeless(tmp_path / "a")


def test_without_a_launcher_nothing_is_noted(tmp_path, monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    run_out(tmp_path)
    assert not list(tmp_path.iterdir())
