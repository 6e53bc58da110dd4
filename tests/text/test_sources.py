"""Several sources of rows: weights for all or none, columns of their own."""

import pytest

from featherweight.errors import ConfigError
from featherweight.text.sources import Source, data_name, sources_of, weights_of


def read(data, **columns):
    return sources_of(data, columns, ["note"], where="task chat")


def test_a_source_reads_by_its_own_columns_or_by_those_of_the_task():
    one, other = read(["a.jsonl", Source(path="b.csv", columns={"prompt": "Frage"}, ignore_columns=[])], prompt="q")
    assert one == (Source(path="a.jsonl"), {"columns": {"prompt": "q"}, "ignore_columns": ["note"]})
    assert other[1] == {"columns": {"prompt": "Frage"}, "ignore_columns": []}


def test_weights_are_those_of_all_sources_or_none():
    data = [Source(path="a", weight=2), Source(path="b", weight=0.5)]
    assert weights_of(data) == [2, 0.5] and weights_of(["a", "b"]) is None and weights_of("a") is None
    assert data_name(data) == "a (weight 2), b (weight 0.5)" and data_name("a") == "a"
    with pytest.raises(ConfigError, match="data=b has no weight, and other sources have one.*path: b, weight: 1"):
        read([Source(path="a", weight=2), "b"])


@pytest.mark.parametrize(
    ("data", "message"), [([], "names no source"), (["a", "a"], "data=a stands there twice")], ids=["none", "twice"]
)
def test_a_list_that_says_nothing_is_refused(data, message):
    with pytest.raises(ConfigError, match=message):
        read(data)
