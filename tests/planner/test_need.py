import dataclasses
from types import SimpleNamespace

import pytest

from featherweight.planner import Target, need_of
from featherweight.planner.need import expandable_need_of, smallest_need_of
from featherweight.training.estimate import estimate_memory


@pytest.fixture(scope="module")
def estimates(tiny):
    task = {"name": "text", "model": tiny, "corpus": "english", "seq_len": 64}
    recipe = {"task": task, "optimizer": {"name": "adamw", "lr": 0.01}, "steps": 2, "micro_batch_size": 2}
    return {kind: estimate_memory(None, recipe, device=kind) for kind in ("cuda", "cpu")}


def test_a_card_needs_segments_workspaces_and_a_context(estimates):
    target = Target.of(device="rtx4090")
    need = need_of(estimates["cuda"], target)
    assert need.allocated_bytes == estimates["cuda"].peak_bytes > 0
    assert need.reserved_bytes >= need.allocated_bytes and need.reserved_bytes % 2**21 == 0
    assert need.context_bytes == target.calibration.context_bytes
    assert need.workspace_bytes == target.calibration.cublas_workspace_bytes > 0
    assert need.total_bytes == need.reserved_bytes + need.workspace_bytes + need.context_bytes


@pytest.mark.parametrize(("budget", "device"), [(None, "rtx4090"), ("8GB", "t4"), ("2GB", "cpu")])
def test_the_interval_contains_the_total_and_not_less_than_the_tensors(estimates, budget, device):
    target = Target.of(budget, device)
    need = need_of(estimates[target.kind], target)
    assert need.allocated_bytes <= need.low_bytes < need.total_bytes < need.high_bytes


def test_it_fits_up_to_the_margin_exactly(estimates):
    target = Target.of("2GB", "rtx4090")
    need = need_of(estimates["cuda"], target)
    spare = target.usable_bytes - need.total_bytes
    full = dataclasses.replace(need, reserved_bytes=need.reserved_bytes + spare)
    assert full.fits(target) and full.total_bytes < target.budget_bytes
    assert not dataclasses.replace(full, context_bytes=full.context_bytes + 1).fits(target)


def test_a_process_on_a_cpu_needs_its_tensors_and_itself(estimates):
    need = need_of(estimates["cpu"], Target.of("2GB", "cpu"))
    assert need.reserved_bytes == need.allocated_bytes == estimates["cpu"].peak_bytes
    assert need.workspace_bytes == 0 and need.context_bytes == 500 * 2**20


def test_a_budget_that_holds_the_tensors_but_not_what_the_allocator_likes_to_keep():
    # Mutation: the segments that an unlimited allocator keeps, whatever the budget. Each tensor is larger than the one
    # before, which is gone by then: kept segments are of no use.
    sizes = [100 * 2**20 + number * 2**21 for number in range(10)]
    events = [event for number, size in enumerate(sizes) for event in ((number, size), (number, -1))]
    estimate = SimpleNamespace(peak_bytes=sizes[-1], timeline=SimpleNamespace(numbered=lambda: events))
    card = Target.of(device="rtx4090")
    free, small = need_of(estimate, card), smallest_need_of(estimate, card)
    assert free.retries == 0 and free.reserved_bytes == sum(sizes)
    assert small.retries == 9 and small.reserved_bytes == small.allocated_bytes == sizes[-1]
    growing = expandable_need_of(estimate, card)
    assert growing.retries == 0 and growing.allocated_bytes <= growing.reserved_bytes < 1.2 * growing.allocated_bytes
    enough = dataclasses.replace(card, budget_bytes=int(small.total_bytes / (1 - card.margin)) + 1)
    assert need_of(estimate, enough) == small and small.fits(enough)
    too_small = dataclasses.replace(card, budget_bytes=int(small.total_bytes / (1 - card.margin) * 0.95))
    assert not need_of(estimate, too_small).fits(too_small)
