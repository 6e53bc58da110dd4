import pytest
import torch
from guard_stand_in import load_fixture, load_guard

from featherweight.errors import ConfigError
from featherweight.guard.guarded_model import GuardedModel
from featherweight.guard.room import require_room


def test_a_prompt_that_leaves_no_room_for_the_probe_is_refused():
    model, tokenizer = load_fixture()
    guard = load_guard().bind(model, tokenizer)
    room = 192 - len(guard.options.forced_ids) - guard.options.probe_tokens
    require_room(model, room, guard)
    with pytest.raises(ConfigError, match=f"leave no room .* expected at most {room}"):
        require_room(model, room + 1, guard)
    with pytest.raises(ConfigError, match="leave no room"):
        guard.judge(model, tokenizer, ["word " * 200])
    with pytest.raises(ConfigError, match="leave no room"):
        GuardedModel(model, tokenizer, guard).generate(torch.full((1, room + 1), 7), max_new_tokens=1)
