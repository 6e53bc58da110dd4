"""What a calibration keeps of the model, and a fault of the published data that it refuses: a prefix for each class."""

import json
import shutil

import pytest
import torch

from featherweight.errors import CheckpointError, ConfigError
from featherweight.guard.guard import PrefixGuard
from featherweight.guard.readings import read_readings, require_one_prefix


@pytest.mark.slow
def test_a_guard_made_again_from_its_readings_is_the_same_to_the_last_bit(stand_in, cascade, readings_folder):
    again = PrefixGuard.refit([readings_folder], stand_in[1], tier="cascade", target_fpr=0.02)
    assert again.options == cascade.options and again.fingerprints == cascade.fingerprints
    for tier in cascade.tiers:
        for name in ("mean", "std", "weight", "bias"):
            assert torch.equal(getattr(again.linear(tier), name), getattr(cascade.linear(tier), name))
    again.bind(*stand_in)


def edited(source, folder, change):
    """A copy of readings whose rows were changed."""
    shutil.copytree(source, folder)
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    for row in rows:
        change(row)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_classes_that_were_probed_with_different_prefixes_are_refused(readings_folder, cascade, tmp_path):
    def other_for_benign(row):
        if row["kind"] == "benign":
            row["forced_ids"] = [*row["forced_ids"], 7]

    mixed = edited(readings_folder, tmp_path / "mixed", other_for_benign)
    with pytest.raises(ConfigError, match="begin with different prefixes .* for every class"):
        read_readings([mixed])
    other = tmp_path / "other"
    shutil.copytree(readings_folder, other)
    settings = json.loads((other / "readings.json").read_text())
    settings["options"]["prefix_ids"] = [7, 8]
    (other / "readings.json").write_text(json.dumps(settings))
    with pytest.raises(ConfigError, match="begin with different prefixes"):
        read_readings([readings_folder, other])
    require_one_prefix({"harmful": {(1, 2)}, "benign": {(1, 2)}}, "rows")


def test_folders_of_one_prefix_are_joined_and_those_of_other_models_are_refused(readings_folder, tmp_path):
    once, twice = read_readings([readings_folder]), read_readings([readings_folder, readings_folder])
    count = len(once.rows.keys)
    assert len(twice.rows.keys) == 2 * count and twice.collected.snapshots.keys() == once.collected.snapshots.keys()
    assert twice.collected.evidence.probe_ids[count:] == once.collected.evidence.probe_ids
    other = tmp_path / "other"
    shutil.copytree(readings_folder, other)
    settings = json.loads((other / "readings.json").read_text())
    settings["fingerprints"]["shape"]["hidden_size"] = 8
    (other / "readings.json").write_text(json.dumps(settings))
    with pytest.raises(ConfigError, match="shape of the model of .* differs"):
        read_readings([readings_folder, other])


@pytest.mark.parametrize("name", ["rows.jsonl", "evidence.safetensors", "readings.json"])
def test_damaged_readings_are_refused(readings_folder, cascade, tmp_path, name):
    folder = tmp_path / "damaged"
    shutil.copytree(readings_folder, folder)
    (folder / name).write_bytes((folder / name).read_bytes()[:-200])
    with pytest.raises(CheckpointError, match="is damaged"):
        read_readings([folder])
    with pytest.raises(CheckpointError, match="holds no readings.json"):
        read_readings([tmp_path / "nowhere"])
