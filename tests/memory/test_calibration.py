import json

import pytest
import torch

from featherweight.errors import ConfigError, DeviceError
from featherweight.memory.benchmark import BenchmarkSizes, Measured, measure_rates
from featherweight.memory.calibration import (
    Calibration,
    calibration_of,
    calibration_path,
    default_calibration,
    load_calibration,
    measure_calibration,
    save_calibration,
)
from featherweight.memory.cards import CARDS, find_card
from featherweight.memory.workspace import workspace_bytes

TINY = BenchmarkSizes(gemm=32, attention_tokens=8, elements=1024, copy_bytes=4096, launches=10, repeats=3, seconds=1e-5)
CONTEXT = Measured(400.0, 300.0, 400.0)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FEATHERWEIGHT_CACHE", str(tmp_path))
    return tmp_path


def measured(name):
    """A calibration with the rates of this CPU, as if a card of that name had reached them."""
    rates = measure_rates(torch.device("cpu"), ("fp32", "bf16"), TINY)
    return rates, calibration_of(rates, CONTEXT, name=name, capability=(8, 9), driver="1.2")


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
def test_defaults_of_every_card_say_that_they_were_not_measured(card):
    calibration = default_calibration(card)
    assert calibration.statement == f"{card.name}: defaults, not measured"
    assert (calibration.source, calibration.margin, calibration.date) == ("default", 0.08, "")
    assert calibration.cublas_workspace_bytes == workspace_bytes(card.capability)
    assert calibration.gemm_flop_per_s("fp16") == 0.6 * card.peak_flop_per_s("fp16")
    assert calibration.elementwise_bytes_per_s == 0.8 * card.memory_bytes_per_s
    for name in ("context_bytes", "allocator_error", "kernel_launch_us", "h2d_bytes_per_s", "gemm_efficiency.bf16"):
        low, high = calibration.interval(name)
        assert low < high  # nothing that was not measured is a point


def test_rates_of_a_known_card_are_shares_of_its_peaks():
    rates, calibration = measured("NVIDIA GeForce RTX 4090")
    card = find_card("4090")
    assert calibration.card == "RTX 4090"
    assert (calibration.source, calibration.margin, calibration.driver) == ("measured", 0.03, "1.2")
    assert "measured on 20" in calibration.statement
    assert calibration.peak_flop_per_s == {"fp32": card.fp32_flop_per_s, "bf16": card.bf16_flop_per_s}
    # One multiplication and one division: the product with the peak is the rate again but for the last bits.
    assert calibration.gemm_flop_per_s("bf16") == pytest.approx(rates.gemm_flop_per_s["bf16"].value, rel=1e-12)
    assert calibration.attention_flop_per_s() == pytest.approx(rates.attention_flop_per_s.value, rel=1e-12)
    assert calibration.elementwise_bytes_per_s == pytest.approx(rates.elementwise_bytes_per_s.value, rel=1e-12)
    assert calibration.kernel_launch_us == pytest.approx(rates.launch_s.value * 1e6, rel=1e-12)
    assert calibration.context_bytes == 400
    assert calibration.interval("context_bytes") == (300, 400)
    assert calibration.interval("peak_memory_bytes_per_s") == (1008e9, 1008e9)


def test_a_card_outside_of_the_table_is_measured_against_itself():
    rates, calibration = measured("Some Card 9000")
    assert calibration.card == "Some Card 9000"
    assert calibration.gemm_efficiency == pytest.approx({"fp32": 1.0, "bf16": 1.0}, rel=1e-12)
    assert calibration.peak_memory_bytes_per_s == rates.elementwise_bytes_per_s.value
    path = save_calibration(calibration)
    assert path.name == "some-card-9000.json"
    assert load_calibration("some card 9000") == calibration


def test_a_precision_that_was_not_measured_counts_as_float32():
    _, calibration = measured("RTX 4090")
    assert calibration.gemm_flop_per_s("int8") == calibration.gemm_flop_per_s("fp32")


def test_a_saved_calibration_is_loaded_in_place_of_the_defaults(cache):
    card = find_card("rtx4090")
    assert load_calibration("4090") == load_calibration(card) == default_calibration(card)
    _, calibration = measured("NVIDIA GeForce RTX 4090")
    path = save_calibration(calibration)
    assert path == cache / "calibration" / "rtx-4090.json" == calibration_path("4090")
    assert load_calibration("4090") == load_calibration(card) == calibration
    assert load_calibration("3090").source == "default"
    assert json.loads(path.read_text())["kernel_launch_us"] == calibration.kernel_launch_us


def test_a_calibration_may_be_shared_as_a_file(tmp_path):
    _, calibration = measured("RTX 4090")
    path = save_calibration(calibration, tmp_path / "shared" / "mine.json")
    assert load_calibration("4090", path) == calibration
    with pytest.raises(ConfigError, match="card=3090 is not that of .*mine.json, which holds RTX 4090"):
        load_calibration("3090", path)
    with pytest.raises(ConfigError, match="absent.json"):
        load_calibration("4090", tmp_path / "absent.json")


def test_an_unknown_card_without_a_file_is_named():
    with pytest.raises(ConfigError, match=r"Did you mean 'RTX 4090'\?"):
        load_calibration("rtx 4091")


def test_wrong_intervals_are_named():
    values = default_calibration(find_card("t4")).to_dict()
    with pytest.raises(ConfigError, match="intervals hold 'contxt_bytes'; expected names of figures"):
        Calibration.parse({**values, "intervals": {"contxt_bytes": (0, 1)}})
    with pytest.raises(ConfigError, match=r"intervals hold context_bytes=\(0.0, 1.0\) around 524288000; expected low"):
        Calibration.parse({**values, "intervals": {"context_bytes": (0, 1)}})
    with pytest.raises(ConfigError, match="interval='gemm_efficiency' is no figure"):
        default_calibration(find_card("t4")).interval("gemm_efficiency")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_measuring_needs_a_gpu():
    for device in ("cpu", "cuda"):
        with pytest.raises(DeviceError, match=f"measure_calibration: device={device} is no available GPU"):
            measure_calibration(device)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_reaches_a_fair_share_of_its_peaks():
    calibration = measure_calibration("cuda:0")
    assert calibration.source == "measured"
    # A large matrix product that reaches less than a fifth of the peak, or more than all of it, was measured wrongly.
    assert all(0.2 < share < 1.05 for share in calibration.gemm_efficiency.values())
    assert 0.5 < calibration.elementwise_bandwidth_share < 1.05
    assert 1 < calibration.kernel_launch_us < 100
