import math

import pytest

from featherweight.errors import ConfigError
from featherweight.guard.options import GuardOptions, default_layers

BASE = {"prefix_text": "I cannot", "prefix_ids": [1, 2]}


def test_looks_in_front_of_the_prefix_may_flag_and_never_clear():
    stages = [{"tier": "hidden", "flag_above": 3.0}, {"tier": "probe_hidden", "flag_above": 1.0}]
    assert GuardOptions(**BASE, stages=stages).deciding.tier == "probe_hidden"
    for wrong in (
        [{"tier": "hidden", "flag_above": 3.0, "clear_at_most": 0.0}, {"tier": "probe"}],
        [{"tier": "logprob", "flag_above": 3.0}],
    ):
        with pytest.raises(ConfigError, match="may never clear"):
            GuardOptions(**BASE, stages=wrong)


def test_stages_stand_in_the_order_of_reading():
    with pytest.raises(ConfigError, match="in the order"):
        GuardOptions(**BASE, stages=[{"tier": "probe"}, {"tier": "prefix_hidden"}])
    with pytest.raises(ConfigError, match="early_exit needs"):
        GuardOptions(**BASE, stages=[{"tier": "prefix_hidden"}], early_exit=[{"tokens": 4}])


def test_a_topic_is_never_shown():
    with pytest.raises(ConfigError, match="no refusal"):
        GuardOptions(**BASE, stages=[{"tier": "probe"}], shows_prefix=False, on_flag="truncate")


def test_thresholds_are_strict_and_survive_a_file(tmp_path):
    options = GuardOptions(**BASE, stages=[{"tier": "probe", "flag_above": 0.5}])
    assert not options.deciding.flags(0.5) and options.deciding.flags(0.5001)
    for limit, flagged in ((math.inf, False), (-math.inf, True)):
        changed = options.with_threshold(limit)
        changed.to_file(tmp_path / "a.json")
        assert GuardOptions.from_file(tmp_path / "a.json") == changed
        assert changed.deciding.flags(-1e6) is flagged


def test_layers_are_those_at_a_half_three_quarters_and_all_of_the_depth():
    assert default_layers(3) == (1, 2, 3) and default_layers(1) == (1,)
