import pytest

from featherweight.bev.data.splits import check_no_leak, sequences_of
from featherweight.errors import ConfigError


def test_the_published_split_has_its_sizes_and_no_drive_twice():
    train, judged = sequences_of("pon", "train"), sequences_of("pon", "val")
    assert (len(train), len(judged)) == (698, 148) and not train & judged
    assert sequences_of("pon", "calibration") <= train and len(sequences_of("pon", "calibration")) == 50
    official = sequences_of("official", "train"), sequences_of("official", "val")
    assert (len(official[0]), len(official[1])) == (700, 150) and not official[0] & official[1]
    assert (official[0] | official[1]) - train - judged == {f"scene-{n:04d}" for n in (410, 641, 805, 910)}
    assert len(sequences_of("official", "train", mini=True)) == 8
    assert len(sequences_of("argoverse1", "train")) == 65 and len(sequences_of("argoverse1", "val")) == 24


def test_judging_on_drives_that_were_trained_on_is_refused():
    both = sequences_of("official", "train") & sequences_of("pon", "val")
    assert len(both) == 116
    with pytest.raises(ConfigError, match="116 of 148 drives"):
        check_no_leak(sequences_of("official", "train"), sequences_of("pon", "val"), where="test")
    check_no_leak(sequences_of("pon", "train"), sequences_of("pon", "val"), where="test")


def test_an_unknown_split_is_refused():
    with pytest.raises(ConfigError, match="not published"):
        sequences_of("pom", "train")
