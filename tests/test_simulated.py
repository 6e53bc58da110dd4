import pytest
import torch

from featherweight.simulated import SimulatedDevice, counting_only, device_kind, simulated_device
from featherweight.tiles import tiles

CUDA = SimulatedDevice("cuda")


def test_code_runs_for_the_tensors_own_device_or_the_simulated_one():
    cpu, meta = torch.device("cpu"), torch.device("meta")
    assert (device_kind(cpu), device_kind(meta), simulated_device()) == ("cpu", "meta", None)
    with counting_only(SimulatedDevice("cuda", 80 << 30)):
        assert (device_kind(cpu), device_kind(meta)) == ("cuda", "cuda")
        assert simulated_device() == SimulatedDevice("cuda", 80 << 30)
        with counting_only(SimulatedDevice("cpu")):
            assert device_kind(cpu) == "cpu"
        assert device_kind(cpu) == "cuda"
    assert device_kind(cpu) == "cpu"


def test_an_error_inside_ends_the_simulation():
    with pytest.raises(RuntimeError), counting_only(CUDA):
        raise RuntimeError
    assert simulated_device() is None and len(list(tiles(100, 10))) == 10
