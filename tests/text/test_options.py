"""Options of the task of conversations: what makes no sense is refused."""

import pytest

from featherweight.errors import ConfigError
from featherweight.text.options import ChatConfig


@pytest.mark.parametrize("train_on", [[], ["assistant", "assistant"], ["asistant"], "first"])
def test_roles_are_known_and_named_once(train_on):
    with pytest.raises(ConfigError, match="train_on"):
        ChatConfig.parse({"data": "a.jsonl", "train_on": train_on})


def test_sources_are_paths_or_have_weights():
    config = ChatConfig.parse({"data": ["a.jsonl", {"path": "b.jsonl", "columns": {"prompt": "q"}}]})
    assert config.data[0] == "a.jsonl" and config.data[1].columns == {"prompt": "q"}
    with pytest.raises(ConfigError, match=r"wieght.*Did you mean 'weight'"):
        ChatConfig.parse({"data": [{"path": "b.jsonl", "wieght": 1}]})
