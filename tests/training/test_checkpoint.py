import json
import resource
import signal

import pytest
import torch
from torch import nn

from featherweight.errors import CheckpointError
from featherweight.training.checkpoint import FORMAT_VERSION, MANIFEST, STATE, WEIGHTS, Checkpoints


class Tied(nn.Module):
    """Two layers that share one weight, as embedding and head of a language model do."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.embedding, self.head = nn.Linear(4, 4), nn.Linear(4, 4)
        self.head.weight = self.embedding.weight
        self.register_buffer("count", torch.tensor([value]))
        nn.init.constant_(self.head.weight, value)


@pytest.fixture
def checkpoints(tmp_path):
    return Checkpoints(tmp_path / "checkpoints", keep=2)


def names(checkpoints: Checkpoints) -> list[str]:
    return sorted(path.name for path in checkpoints.folder.iterdir())


def test_a_checkpoint_gives_back_weights_buffers_and_state_and_keeps_ties(checkpoints):
    checkpoints.save(3, Tied(7.0), {"scalar": 1.5, "tensor": torch.arange(3)}, {"steps": 10})
    latest = checkpoints.latest()
    model = Tied(0.0)
    state = latest.load(model)
    assert (latest.step, latest.recipe) == (3, {"steps": 10})
    assert state["scalar"] == 1.5 and state["tensor"].tolist() == [0, 1, 2]
    assert model.head.weight is model.embedding.weight
    assert model.embedding.weight[0, 0].item() == 7.0 and model.count.item() == 7.0


def test_the_last_ones_are_kept(checkpoints):
    for step in (1, 2, 3, 10):
        checkpoints.save(step, Tied(step), {}, {})
    assert names(checkpoints) == ["step-00000003", "step-00000010"]
    assert checkpoints.latest().step == 10


def test_an_empty_or_absent_folder_has_no_checkpoint(checkpoints):
    assert checkpoints.latest() is None


@pytest.mark.parametrize("damaged", [WEIGHTS, STATE, MANIFEST])
def test_a_truncated_file_is_passed_over_for_the_checkpoint_before_it(checkpoints, damaged):
    checkpoints.save(1, Tied(1.0), {}, {})
    path = checkpoints.save(2, Tied(2.0), {}, {}) / damaged
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.warns(UserWarning, match="step-00000002 is damaged"):
        assert checkpoints.latest().step == 1


@pytest.mark.parametrize("missing", [WEIGHTS, STATE, MANIFEST])
def test_a_missing_file_is_passed_over_for_the_checkpoint_before_it(checkpoints, missing):
    checkpoints.save(1, Tied(1.0), {}, {})
    (checkpoints.save(2, Tied(2.0), {}, {}) / missing).unlink()
    with pytest.warns(UserWarning, match="step-00000002 is damaged"):
        assert checkpoints.latest().step == 1


def test_damage_that_leaves_the_size_is_found_on_loading(checkpoints):
    path = checkpoints.save(1, Tied(1.0), {}, {}) / STATE
    path.write_bytes(b"x" * path.stat().st_size)
    with pytest.raises(CheckpointError, match="step-00000001 cannot be loaded"):
        checkpoints.latest().load(Tied(0.0))


def test_weights_of_another_model_are_refused(checkpoints):
    checkpoints.save(1, nn.Linear(2, 2), {}, {})
    with pytest.raises(CheckpointError, match="cannot be loaded .*expected the files of this recipe's model"):
        checkpoints.latest().load(Tied(0.0))


def test_a_newer_format_is_refused_and_not_passed_over(checkpoints):
    folder = checkpoints.save(1, Tied(1.0), {}, {})
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**manifest, "format_version": FORMAT_VERSION + 1}))
    with pytest.raises(CheckpointError, match=f"format_version={FORMAT_VERSION + 1}.*Update featherweight"):
        checkpoints.latest()


def test_what_a_killed_writer_left_is_ignored_and_removed_by_the_next_one(checkpoints):
    checkpoints.save(1, Tied(1.0), {}, {})
    leftover = checkpoints.folder / ".step-00000002.99999.tmp"
    leftover.mkdir()
    (leftover / WEIGHTS).write_bytes(b"half")
    assert checkpoints.latest().step == 1
    checkpoints.save(3, Tied(3.0), {}, {})
    assert names(checkpoints) == ["step-00000001", "step-00000003"]


def test_writing_a_step_again_replaces_it(checkpoints):
    checkpoints.save(1, Tied(1.0), {"value": 1}, {})
    checkpoints.save(1, Tied(2.0), {"value": 2}, {})
    assert names(checkpoints) == ["step-00000001"]
    assert checkpoints.latest().load(Tied(0.0)) == {"value": 2}


@pytest.mark.parametrize("limit", [300, 2000], ids=["in the weights", "in the state"])
def test_a_failing_write_says_why_and_leaves_the_checkpoint_before_it(checkpoints, limit):
    checkpoints.save(1, Tied(1.0), {}, {})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(CheckpointError, match="cannot be written \\(.*File too large.*step-00000001, is complete"):
            checkpoints.save(2, Tied(2.0), {"large": torch.zeros(5000)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert names(checkpoints) == ["step-00000001"]
    assert checkpoints.latest().step == 1


def test_a_full_disk_is_named(checkpoints, monkeypatch):
    checkpoints.save(1, Tied(1.0), {}, {})

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(CheckpointError, match="No space left on device.*step-00000001, is complete.*Free some space"):
        checkpoints.save(2, Tied(2.0), {}, {})
    assert names(checkpoints) == ["step-00000001"]


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be written .*No checkpoint stands before it"):
        Checkpoints(tmp_path / "file" / "checkpoints").save(1, Tied(1.0), {}, {})
