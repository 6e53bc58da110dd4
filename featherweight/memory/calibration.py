"""What a card costs and reaches beyond the bytes of tensors: context, workspaces, and shares of its peak rates.

`measure_calibration` finds out on a GPU and `save_calibration` keeps the result. Where nothing was measured,
`default_calibration` gives cautious figures with wide intervals that say what they are: defaults, not measured.
"""

import datetime
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field, model_validator

from featherweight.config import Config, cache_folder
from featherweight.errors import ConfigError
from featherweight.memory.benchmark import (
    BenchmarkSizes,
    Measured,
    Rates,
    measure_context,
    measure_rates,
    require_gpu,
)
from featherweight.memory.cards import Card, Precision, find_card
from featherweight.memory.workspace import workspace_bytes

Positive = Annotated[float, Field(gt=0)]

_MIB = 2**20
_PRECISIONS: tuple[Precision, ...] = ("fp32", "tf32", "bf16", "fp16", "int8")
_MEASURED_MARGIN, _DEFAULT_MARGIN = 0.03, 0.08
_ALLOCATOR_ERROR = Measured(0.05, 0.0, 0.1)


class Calibration(Config):
    """What is known of a card; rates are shares of the peaks that stand beside them."""

    card: str
    """Name of the card."""
    capability: tuple[int, int]
    """Compute capability."""
    source: Literal["measured", "default"]
    """Measured on this card, or defaults that were not."""
    date: str = ""
    """Day of the measurement, year first; empty for defaults."""
    driver: str = ""
    """Version of the driver; empty if unknown."""
    torch_version: str = ""
    """Version of torch that measured; empty for defaults."""
    context_bytes: int = Field(ge=0)
    """Bytes of the CUDA context and of the loaded kernels."""
    cublas_workspace_bytes: int = Field(ge=0)
    """Bytes that matrix products keep, inside of the allocated memory."""
    allocator_error: float = Field(ge=0.0, lt=1.0)
    """Share by which the model of the allocator may be wrong about the reserved peak; a guess in measured ones too."""
    peak_flop_per_s: dict[Precision, Positive]
    """Peaks that the efficiencies refer to, by precision."""
    peak_memory_bytes_per_s: Positive
    """Peak bandwidth of the card's memory."""
    gemm_efficiency: dict[Precision, Positive]
    """Share of the peak that a large matrix product reaches, by precision."""
    attention_efficiency: Positive
    """Share of the 16-bit peak that attention reaches, in operations counted without regard to the causal mask."""
    elementwise_bandwidth_share: Positive
    """Share of the bandwidth that element-wise work reaches."""
    h2d_bytes_per_s: Positive
    """Bytes per second from pinned host memory."""
    d2h_bytes_per_s: Positive
    """Bytes per second to pinned host memory."""
    kernel_launch_us: Positive
    """Microseconds of a small operator."""
    intervals: dict[str, tuple[float, float]] = {}
    """Low and high end of each figure above, by its name; ``gemm_efficiency.bf16`` for one precision."""

    @model_validator(mode="after")
    def _check_intervals(self) -> Self:
        for name, (low, high) in self.intervals.items():
            value = self._figure(name)
            if value is None:
                raise ValueError(f"intervals hold '{name}'; expected names of figures. Remove it.")
            if not low <= value <= high:
                raise ValueError(
                    f"intervals hold {name}=({low}, {high}) around {value}; expected low <= value <= high. "
                    "Correct them."
                )
        return self

    def _figure(self, name: str) -> float | None:
        field, _, precision = name.partition(".")
        value = getattr(self, field, None) if field in type(self).model_fields else None
        if isinstance(value, dict):
            value = value.get(precision)
        elif precision:
            value = None
        return value if isinstance(value, int | float) else None

    def interval(self, name: str) -> tuple[float, float]:
        """Return the low and high end of a figure, both the figure itself where no interval is known.

        Args:
            name: a field, or ``gemm_efficiency.bf16``.
        Raises:
            ConfigError: if there is no such figure.
        """
        value = self._figure(name)
        if value is None:
            raise ConfigError(
                f"Calibration: interval={name!r} is no figure; expected a name such as context_bytes or "
                "gemm_efficiency.bf16. Check the spelling."
            )
        return self.intervals.get(name, (value, value))

    @property
    def margin(self) -> float:
        """Share of a budget to leave free: 3 % if measured, 8 % by default."""
        return _MEASURED_MARGIN if self.source == "measured" else _DEFAULT_MARGIN

    @property
    def statement(self) -> str:
        """One line that says where the figures come from."""
        if self.source == "default":
            return f"{self.card}: defaults, not measured"
        return (
            f"{self.card}: measured on {self.date} with torch {self.torch_version}, driver {self.driver or 'unknown'}"
        )

    def gemm_flop_per_s(self, precision: Precision) -> float:
        """Return the operations per second of a large matrix product; of float32 for an unknown precision."""
        known: Precision = precision if precision in self.gemm_efficiency else "fp32"
        return self.peak_flop_per_s[known] * self.gemm_efficiency[known]

    def attention_flop_per_s(self, precision: Precision = "bf16") -> float:
        """Return the counted operations per second of attention."""
        return self.peak_flop_per_s.get(precision, self.peak_flop_per_s["fp32"]) * self.attention_efficiency

    @property
    def elementwise_bytes_per_s(self) -> float:
        """Bytes per second that element-wise work reads and writes."""
        return self.peak_memory_bytes_per_s * self.elementwise_bandwidth_share


def default_calibration(card: Card) -> Calibration:
    """Return cautious figures for a card that was not measured.

    None of them was measured. The context takes 287 MB with lazily loaded kernels and 667 MB with all of them in the
    figures of pull request 86509 of github.com/pytorch/pytorch; the rest are customary guesses, the intervals wide.

    Example:
        >>> calibration = default_calibration(find_card("rtx4090"))
        >>> calibration.statement, calibration.margin
        ('RTX 4090: defaults, not measured', 0.08)
    """
    link = card.host_bytes_per_s
    peaks: dict[Precision, float] = {precision: card.peak_flop_per_s(precision) for precision in _PRECISIONS}
    figures = {
        "context_bytes": Measured(500 * _MIB, 250 * _MIB, 800 * _MIB),
        "attention_efficiency": Measured(0.4, 0.15, 1.2),
        "elementwise_bandwidth_share": Measured(0.8, 0.6, 0.95),
        "h2d_bytes_per_s": Measured(0.7 * link, 0.3 * link, 0.95 * link),
        "d2h_bytes_per_s": Measured(0.7 * link, 0.3 * link, 0.95 * link),
        "kernel_launch_us": Measured(8.0, 3.0, 20.0),
    }
    return _calibration(
        figures,
        gemm=dict.fromkeys(peaks, Measured(0.6, 0.35, 0.9)),
        card=card.name,
        capability=card.capability,
        source="default",
        cublas_workspace_bytes=workspace_bytes(card.capability),
        peak_flop_per_s=peaks,
        peak_memory_bytes_per_s=card.memory_bytes_per_s,
    )


def measure_calibration(device: torch.device | str = "cuda", *, sizes: BenchmarkSizes | None = None) -> Calibration:
    """Measure a card; nothing else should run on it meanwhile.

    Args:
        device: the GPU.
        sizes: how much to do; default: a few seconds.
    Raises:
        DeviceError: if there is no such GPU.
    Cost: a few seconds of work, 768 MiB of the card at a time, and the start of a second process.
    """
    device = torch.device(device)
    require_gpu(device, "measure_calibration")
    name, capability = torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)
    context = measure_context(device)
    precisions: tuple[Precision, ...] = ("fp32", "fp16")
    if capability >= (8, 0):
        precisions = ("fp32", "tf32", "fp16", "bf16")
    rates = measure_rates(device, precisions, sizes)
    return calibration_of(rates, context, name=name, capability=capability, driver=_driver_version())


def calibration_of(
    rates: Rates, context: Measured, *, name: str, capability: tuple[int, int], driver: str = ""
) -> Calibration:
    """Turn measured rates into a calibration.

    A card outside of the table has no peaks; then its measured rates take their place, with efficiencies of one.

    Args:
        rates: from `measure_rates`.
        context: from `measure_context`, in bytes.
        name: name of the card, as torch shows it.
        capability: compute capability.
        driver: version of the driver.
    """
    card = _find(name)
    peaks: dict[Precision, float] = {
        precision: card.peak_flop_per_s(precision) if card else rate.value
        for precision, rate in rates.gemm_flop_per_s.items()
    }
    peak_bytes = card.memory_bytes_per_s if card else rates.elementwise_bytes_per_s.value
    half = max(peaks.get("bf16", 0.0), peaks.get("fp16", 0.0)) or peaks["fp32"]
    figures = {
        "context_bytes": context,
        "attention_efficiency": _scaled(rates.attention_flop_per_s, 1 / half),
        "elementwise_bandwidth_share": _scaled(rates.elementwise_bytes_per_s, 1 / peak_bytes),
        "h2d_bytes_per_s": rates.host_to_device_bytes_per_s,
        "d2h_bytes_per_s": rates.device_to_host_bytes_per_s,
        "kernel_launch_us": _scaled(rates.launch_s, 1e6),
    }
    return _calibration(
        figures,
        gemm={precision: _scaled(rate, 1 / peaks[precision]) for precision, rate in rates.gemm_flop_per_s.items()},
        card=card.name if card else name,
        capability=capability,
        source="measured",
        date=datetime.date.today().isoformat(),
        driver=driver,
        torch_version=torch.__version__,
        cublas_workspace_bytes=workspace_bytes(capability, environment=os.environ),
        peak_flop_per_s=peaks,
        peak_memory_bytes_per_s=peak_bytes,
    )


def _calibration(figures: dict[str, Measured], gemm: dict[Precision, Measured], **known: Any) -> Calibration:
    """Build a calibration from figures with their intervals, and from what needs none."""
    figures = figures | {"allocator_error": _ALLOCATOR_ERROR}
    named = figures | {f"gemm_efficiency.{precision}": share for precision, share in gemm.items()}
    values = {name: int(one.value) if name == "context_bytes" else one.value for name, one in figures.items()}
    return Calibration.parse(
        known
        | values
        | {
            "gemm_efficiency": {precision: share.value for precision, share in gemm.items()},
            "intervals": {name: (one.low, one.high) for name, one in named.items()},
        }
    )


def calibration_path(card: Card | str) -> Path:
    """Return where the calibration of a card is kept: one JSON file per card in the user's cache folder."""
    name = card.name if isinstance(card, Card) else card
    found = _find(name)
    slug = re.sub(r"[^a-z0-9]+", "-", (found.name if found else name).casefold()).strip("-")
    return cache_folder() / "calibration" / f"{slug}.json"


def save_calibration(calibration: Calibration, path: str | os.PathLike[str] | None = None) -> Path:
    """Write a calibration, complete or not at all, and return its path.

    Args:
        calibration: what to keep.
        path: a file that ends in .json or .yaml; default: `calibration_path`.
    Raises:
        ConfigError: if the file cannot be written.
    """
    path = Path(path) if path is not None else calibration_path(calibration.card)
    calibration.to_file(path)
    return path


def load_calibration(card: Card | str, path: str | os.PathLike[str] | None = None) -> Calibration:
    """Return what was measured for a card, or its defaults where nothing was.

    Args:
        card: a card, or its name in any spelling.
        path: a file to read instead of the user's own.
    Raises:
        ConfigError: if the file is damaged or belongs to another card, or a card without a file is not in the table.
    """
    file = Path(path) if path is not None else calibration_path(card)
    if path is None and not file.exists():
        return default_calibration(card if isinstance(card, Card) else find_card(card))
    calibration = Calibration.from_file(file)
    if calibration_path(calibration.card) != calibration_path(card):
        name = card.name if isinstance(card, Card) else card
        raise ConfigError(
            f"load_calibration: card={name} is not that of {file}, which holds {calibration.card}; expected the same "
            "card. Choose another file, or measure this card."
        )
    return calibration


def _find(name: str) -> Card | None:
    try:
        return find_card(name)
    except ConfigError:
        return None


def _scaled(measured: Measured, factor: float) -> Measured:
    return Measured(*(one * factor for one in measured))


def _driver_version() -> str:
    program = shutil.which("nvidia-smi")
    if program is None:
        return ""
    query = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, check=False, timeout=30)
    return done.stdout.splitlines()[0].strip() if done.returncode == 0 and done.stdout.strip() else ""
