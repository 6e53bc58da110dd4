import pytest

from featherweight.errors import ConfigError
from featherweight.training.schedule import Schedule, lr_factor


def factors(schedule: Schedule, steps: int) -> list[float]:
    return [lr_factor(schedule, step, steps) for step in range(steps)]


def test_warmup_rises_linearly_to_one_and_the_cosine_starts_there():
    values = factors(Schedule(name="cosine", warmup_steps=4, final_fraction=0.0), 20)
    assert values[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert all(later < earlier for earlier, later in zip(values[4:], values[5:], strict=False))


def test_cosine_is_half_way_down_in_the_middle_of_the_decay():
    # Half of 1 and 0.2, exact but for the rounding of cos(pi / 2).
    assert lr_factor(Schedule(warmup_steps=2, final_fraction=0.2), 7, 12) == pytest.approx(0.6, abs=1e-12)


@pytest.mark.parametrize("name", ["cosine", "linear"])
def test_decay_reaches_the_final_fraction_when_the_last_step_is_done(name):
    schedule = Schedule(name=name, final_fraction=0.1)
    assert lr_factor(schedule, 10, 10) == pytest.approx(0.1, abs=1e-12)
    assert lr_factor(schedule, 9, 10) > 0.1


def test_constant_stays_at_one_after_the_warmup():
    assert factors(Schedule(name="constant", warmup_fraction=0.5), 4) == [0.5, 1.0, 1.0, 1.0]


def test_two_kinds_of_warmup_are_refused():
    with pytest.raises(ConfigError, match="warmup_steps=1 and warmup_fraction=0.1 are both given"):
        Schedule(warmup_steps=1, warmup_fraction=0.1)
