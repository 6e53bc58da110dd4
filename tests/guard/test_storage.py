import json
import shutil

import pytest
import torch
from guard_stand_in import FIXTURE, load_guard

from featherweight.errors import CheckpointError, ConfigError
from featherweight.guard.guard import PrefixGuard
from featherweight.guard.storage import SETTINGS, WEIGHTS

GUARD = FIXTURE.with_name("stand_in_guard")


@pytest.fixture
def folder(tmp_path):
    shutil.copytree(GUARD, tmp_path / "guard")
    return tmp_path / "guard"


def changed(folder, change):
    settings = json.loads((folder / SETTINGS).read_text())
    change(settings)
    (folder / SETTINGS).write_text(json.dumps(settings))


def test_a_guard_is_written_and_read_bit_for_bit(tmp_path):
    guard = load_guard()
    guard.save_pretrained(tmp_path / "new")
    again = PrefixGuard.from_pretrained(tmp_path / "new")
    assert again.options == guard.options and again.fingerprints == guard.fingerprints
    for tier, score in guard._scoring.scores.items():
        assert all(
            torch.equal(getattr(score, part), getattr(again._scoring.scores[tier], part)) for part in vars(score)
        )
    again.save_pretrained(tmp_path / "new")  # a guard may be replaced


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-4]),
        lambda folder: (folder / WEIGHTS).unlink(),
        lambda folder: (folder / SETTINGS).write_text("{"),
        lambda folder: changed(folder, lambda settings: settings.pop("options")),
        lambda folder: changed(folder, lambda settings: settings["options"].update(stages=[{"tier": "probe"}])),
        lambda folder: changed(folder, lambda settings: settings["options"].update(unknown=1)),
        lambda folder: changed(folder, lambda settings: settings["options"].update(format_version=2)),
    ],
)
def test_damaged_folders_are_refused(folder, damage):
    damage(folder)
    with pytest.raises(CheckpointError, match="is damaged"):
        PrefixGuard.from_pretrained(folder)


def test_other_folders_are_neither_read_nor_replaced(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="holds no guard_config.json"):
        PrefixGuard.from_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="is there and no guard"):
        load_guard().save_pretrained(tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"
