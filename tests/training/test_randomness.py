import random

import numpy as np
import torch

from featherweight.training.randomness import continue_rng, preserved_rng, rng_state, seed_everything, set_rng_state


def draw() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_a_restored_state_repeats_the_numbers_of_all_generators_also_by_way_of_a_file(tmp_path):
    seed_everything(3)
    draw()
    np.random.randn()  # leaves a second normal number in NumPy's cache, which belongs to the state
    torch.save(rng_state(), tmp_path / "rng.pt")
    expected = [draw() for _ in range(3)], np.random.randn()
    draw()
    set_rng_state(torch.load(tmp_path / "rng.pt", weights_only=True))
    assert ([draw() for _ in range(3)], np.random.randn()) == expected


def test_seeds_give_equal_numbers_and_other_seeds_others():
    seed_everything(1)
    first = draw()
    seed_everything(1)
    again = draw()
    seed_everything(2)
    assert first == again and all(one != other for one, other in zip(first, draw(), strict=True))


def test_preserved_generators_do_not_notice_what_the_body_draws():
    seed_everything(5)
    expected = draw()
    seed_everything(5)
    with preserved_rng():
        draw()
    assert draw() == expected


def test_as_many_processes_go_on_with_their_own_numbers_and_others_begin_new_ones(caplog):
    states = []
    for seed in (1, 2):
        seed_everything(seed)
        states.append(rng_state())
    continue_rng({"rng_of_ranks": states}, 1, 2, seed=0, step=5)
    seed_everything(2)
    wanted = torch.rand(3)
    continue_rng({"rng_of_ranks": states}, 1, 2, seed=0, step=5)
    assert torch.equal(torch.rand(3), wanted) and not caplog.records
    continue_rng({"rng": states[0]}, 1, 2, seed=0, step=5)
    assert not torch.equal(torch.rand(3), wanted) and "2 processes continue what 1 have begun" in caplog.text
