import pytest
import torch

from featherweight.errors import ConfigError
from featherweight.planner import Target, parse_bytes


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_a_named_card_brings_its_memory_and_a_budget_overrides_it():
    whole, part = Target.of(device="4090"), Target.of("12GB", "rtx4090")
    assert (whole.name, whole.kind, whole.budget_bytes) == ("RTX 4090", "cuda", 24 * 2**30)
    assert part.budget_bytes == part.device.memory_bytes == 12 * 10**9
    assert not whole.is_assumed and not part.is_assumed
    assert whole.usable_bytes == int(24 * 2**30 * (1 - whole.margin)) < whole.budget_bytes


def test_an_unknown_card_is_an_error_with_the_nearest_one():
    with pytest.raises(ConfigError, match="Did you mean 'RTX 4090'"):
        Target.of("12GB", "rtx4091")


def test_a_cpu_has_the_memory_of_the_machine_or_the_budget_and_no_calibration():
    whole, part = Target.of(device="cpu"), Target.of("2GiB", torch.device("cpu"))
    assert whole.kind == part.kind == "cpu" and part.budget_bytes == 2**31
    assert whole.budget_bytes > 2**28 and whole.calibration is None
    assert part.usable_bytes == int(2**31 * 0.92)


def test_without_gpu_and_budget_nobody_knows_what_is_meant(no_gpu):
    for device in (None, "cuda", "cuda:1"):
        with pytest.raises(ConfigError, match="this machine has no GPU; expected a budget such as 12GB or a card"):
            Target.of(device=device)


@pytest.mark.parametrize(("size", "card"), [("12GB", "RTX 4070"), ("24GiB", "RTX 4090"), ("79GiB", "H100 80GB")])
def test_without_a_card_one_of_the_size_is_assumed(no_gpu, size, card):
    target = Target.of(size)
    assert target.name == card and target.is_assumed and target.budget_bytes == parse_bytes(size)


def test_a_budget_beyond_every_card_takes_the_largest(no_gpu):
    assert Target.of("900GB").name == "H200"


def test_options_of_the_allocator_come_from_the_environment(monkeypatch):
    monkeypatch.delenv("PYTORCH_CUDA_ALLOC_CONF", raising=False)
    usual = Target.of(device="rtx4090").allocator
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True,max_split_size_mb:64")
    changed = Target.of(device="rtx4090").allocator
    assert changed != usual and changed.expandable_segments and not usual.expandable_segments
