import json

import pytest

from featherweight.bev.evaluation import evaluate
from featherweight.errors import ConfigError


def test_everything_together_trains_and_is_judged_with_its_protocol(run, world):
    judged = evaluate(run.folder, world)
    result = judged.to_dict()
    assert result["frames"] == 8 and not result["leaks"] and 0 <= result["miou"] <= 1
    assert result["protocol"].endswith("split=pon")
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert result["miou"] == pytest.approx([line["miou"] for line in lines if "miou" in line][-1])


def test_judging_on_drives_that_trained_the_network_is_refused_unless_said(run, world):
    with pytest.raises(ConfigError, match="were used in training"):
        evaluate(run.folder, world, split="official")
    judged = evaluate(run.folder, world, split="official", allow_leak=True)
    assert judged.leaks


def test_an_unknown_split_is_refused(run, world):
    with pytest.raises(ConfigError, match="split='pom' is none of this data set"):
        evaluate(run.folder, world, split="pom")
