"""What one process knows of several: shares of data, and errors that are told once."""

import pytest

from featherweight.distributed.world import World, common, is_told_elsewhere
from featherweight.errors import ConfigError, NumericsError


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("accumulation_steps", [7, 8, 12])
def test_every_micro_batch_of_every_step_belongs_to_one_process(size, accumulation_steps):
    drawn = []
    for rank in range(size):
        world = World(is_alone=True)
        world.rank, world.size = rank, size
        taken = 0
        for step in range(5):
            before, own, passes = world.share(accumulation_steps, step)
            assert before == taken and 1 <= own <= passes == -(-accumulation_steps // size)
            drawn += [(step, rank + size * (taken + index)) for index in range(own)]
            taken += own
    wanted = [(number // accumulation_steps, number) for number in range(5 * accumulation_steps)]
    assert sorted(drawn) == wanted


def test_in_one_process_everything_is_the_identity():
    world = World()
    assert (world.rank, world.size, world.is_first) == (0, 1, True)
    assert world.sums(3, 0.5) == [3.0, 0.5] and world.gather("one") == ["one"]
    assert world.on_first(lambda: 4) == 4
    world.require_same({"the recipe": "seed=1"})
    world.barrier()
    world.require_enough(1)
    with pytest.raises(NumericsError, match="alone"), world.together():
        raise NumericsError("alone")


def test_too_few_micro_batches_are_refused_with_the_number_to_set():
    world = World(is_alone=True)
    world.size = 4
    with pytest.raises(ConfigError, match="Set accumulation_steps=4") as caught:
        world.require_enough(3)
    assert caught.value.is_common


def test_one_process_of_a_machine_tells_what_all_of_them_see(monkeypatch):
    error = common(ConfigError("wrong"))
    assert not is_told_elsewhere(error)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert is_told_elsewhere(error)
