"""The switch between kernels and their twins."""

import sys
import threading

import pytest
import torch

import featherweight as fw
from featherweight import kernels
from featherweight.errors import ConfigError, DeviceError, MissingExtraError
from featherweight.memory.simulate import simulation
from featherweight.simulated import SimulatedDevice

CUDA = torch.cuda.is_available()


@pytest.fixture
def switched_on(monkeypatch):
    """Kernels chosen on a machine that interprets them; none of them runs here."""
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with kernels.use("triton"):
        yield


def test_torch_computes_unless_asked_otherwise():
    assert fw.kernels is kernels
    assert not kernels.run_on(torch.zeros(1))


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match=r"name='trition' is unknown.*Did you mean 'triton'\?"):
        kernels.use("trition")


def test_without_triton_the_message_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)  # as if it were not installed
    with pytest.raises(MissingExtraError, match=r"pip install 'featherweight\[kernels\]'"):
        kernels.use("triton")
    assert not kernels.run_on(torch.zeros(1))


@pytest.mark.skipif(CUDA, reason="there is a device")
def test_without_a_device_and_without_the_interpreter_it_is_refused(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(DeviceError, match="no CUDA device"):
        kernels.use("triton")


def test_a_tensor_where_no_kernel_can_run_is_an_error_and_not_a_silent_twin(switched_on, monkeypatch):
    assert kernels.run_on(torch.zeros(1))
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(DeviceError, match="device=cpu cannot run Triton"):
        kernels.run_on(torch.zeros(1))


def test_the_choice_ends_with_its_block_and_otherwise_lasts(switched_on):
    with kernels.use("torch"):
        assert not kernels.run_on(torch.zeros(1))
        with pytest.raises(KeyError), kernels.use("triton"):
            assert kernels.run_on(torch.zeros(1))
            raise KeyError
        assert not kernels.run_on(torch.zeros(1))
    assert kernels.run_on(torch.zeros(1))
    kernels.use("torch")
    assert not kernels.run_on(torch.zeros(1))


def test_the_choice_holds_in_the_threads_of_backward_passes(switched_on):
    seen = []
    thread = threading.Thread(target=lambda: seen.append(kernels.run_on(torch.zeros(1))))
    thread.start()
    thread.join()
    assert seen == [True]


def test_nothing_runs_where_there_are_no_numbers(switched_on):
    assert not kernels.run_on(torch.zeros(1, device="meta"))
    with simulation(SimulatedDevice("cuda")):
        assert not kernels.run_on(torch.zeros(1))
