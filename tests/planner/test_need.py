import dataclasses

import pytest

from featherweight.planner import Target, need_of
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
