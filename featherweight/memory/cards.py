"""Common NVIDIA cards: memory, bandwidth, peak rates and the way to the host.

All figures are the vendor's peaks, without sparsity; what a program reaches of them is in
`featherweight.memory.calibration`. They were compared with public listings of the data sheets. Where a listing gives
one rate only, the others follow from the ratios of the vendor's white papers, per clock and multiprocessor:

    Ampere and Ada, GeForce         tf32 = fp32, half precision with fp32 sums = 2 fp32, int8 = 8 fp32
    Ampere and Ada, professional    tf32 = 2 fp32, half precision = 4 fp32, int8 = 8 fp32
"""

import dataclasses
import re
from typing import Literal

from featherweight.errors import ConfigError, did_you_mean

Precision = Literal["fp32", "tf32", "bf16", "fp16", "int8"]

_GIB = 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Card:
    """One card as it is sold."""

    name: str
    """Name, as torch shows it but without the vendor's."""
    aliases: tuple[str, ...]
    """Other spellings that `find_card` understands."""
    memory_bytes: int
    """Memory as sold, in units of 2**30 bytes. The driver shows less, for example 42,405,855,232 of the 42,949,672,960
    bytes of an A100 40GB; with error correction on GDDR6 cards, less again."""
    memory_bytes_per_s: float
    """Peak bandwidth of the card's memory in bytes per second."""
    fp32_flop_per_s: float
    """Peak of float32 arithmetic outside of tensor cores."""
    tf32_flop_per_s: float | None
    """Peak of tensor cores on float32 inputs rounded to tf32; None: not there."""
    bf16_flop_per_s: float | None
    """Peak of tensor cores on bfloat16, sums in float32; None: not there."""
    fp16_flop_per_s: float | None
    """Peak of tensor cores on float16, sums in float32."""
    int8_op_per_s: float | None
    """Peak of tensor cores on int8; None: not there."""
    pcie_generation: int
    """Generation of the PCIe link to the host."""
    pcie_lanes: int
    """Lanes of the PCIe link."""
    capability: tuple[int, int]
    """Compute capability, as ``torch.cuda.get_device_capability`` returns it."""
    source: str
    """The vendor's document."""

    @property
    def host_bytes_per_s(self) -> float:
        """Peak of the PCIe link in one direction: 8, 16 or 32 GT/s per lane for generations 3 to 5, 128 of 130 bits."""
        return 2**self.pcie_generation * 1e9 * self.pcie_lanes * 128 / 130 / 8

    def peak_flop_per_s(self, precision: Precision) -> float:
        """Return the peak rate of matrix products, that of float32 where the card has no unit for a precision.

        Example:
            >>> find_card("t4").peak_flop_per_s("fp16"), find_card("t4").peak_flop_per_s("bf16")
            (65000000000000.0, 8100000000000.0)
        """
        rates = {
            "tf32": self.tf32_flop_per_s,
            "bf16": self.bf16_flop_per_s,
            "fp16": self.fp16_flop_per_s,
            "int8": self.int8_op_per_s,
        }
        return rates.get(precision) or self.fp32_flop_per_s


def find_card(name: str) -> Card:
    """Return the card of a name, in any spelling with or without the vendor's name, as torch shows it included.

    A name that two sizes share, such as A100, means the smaller one.

    Raises:
        ConfigError: if no card has this name; the message names the nearest one.
    Example:
        >>> find_card("4090").name, find_card("NVIDIA GeForce RTX 4090").memory_bytes // 2**30
        ('RTX 4090', 24)
    """
    card = _BY_NAME.get(_normalized(name))
    if card is None:
        raise ConfigError(
            f"find_card: name={name!r} is no card that is known here; expected one of the table. {_nearest_card(name)}"
        )
    return card


def _nearest_card(name: str) -> str:
    hint = did_you_mean(_normalized(name), _BY_NAME)
    near = re.match(r"Did you mean '(.*)'\?", hint)
    return f"Did you mean '{_BY_NAME[near[1]].name}'?" if near else did_you_mean(name, [card.name for card in CARDS])


def _normalized(name: str) -> str:
    return re.sub(r"nvidia|geforce|tesla|[^a-z0-9]", "", name.casefold())


def _card(
    name: str,
    *aliases: str,
    gib: int,
    gb_per_s: float,
    tera: tuple[float, float | None, float | None, float | None, float | None],
    pcie: tuple[int, int],
    capability: tuple[int, int],
    source: str,
) -> Card:
    """Build a card from the units of data sheets; `tera` holds fp32, tf32, bf16, fp16 and int8."""
    fp32, tf32, bf16, fp16, int8 = (None if rate is None else rate * 1e12 for rate in tera)
    assert fp32 is not None
    return Card(
        name=name,
        aliases=aliases,
        memory_bytes=gib * _GIB,
        memory_bytes_per_s=gb_per_s * 1e9,
        fp32_flop_per_s=fp32,
        tf32_flop_per_s=tf32,
        bf16_flop_per_s=bf16,
        fp16_flop_per_s=fp16,
        int8_op_per_s=int8,
        pcie_generation=pcie[0],
        pcie_lanes=pcie[1],
        capability=capability,
        source=f"NVIDIA, {source}",
    )


CARDS: tuple[Card, ...] = (
    _card(
        "T4",
        gib=16,
        gb_per_s=320,
        tera=(8.1, None, None, 65, 130),
        pcie=(3, 16),
        capability=(7, 5),
        source="T4 Tensor Core GPU data sheet",
    ),
    _card(
        "V100 16GB",
        "V100",
        "V100-PCIE-16GB",
        "V100-SXM2-16GB",
        gib=16,
        gb_per_s=900,
        tera=(14, None, None, 112, None),  # the PCIe card; the SXM2 module has 15.7 and 125
        pcie=(3, 16),
        capability=(7, 0),
        source="Tesla V100 data sheet, PCIe",
    ),
    _card(
        "V100 32GB",
        "V100-PCIE-32GB",
        "V100-SXM2-32GB",
        "V100-SXM3-32GB",
        gib=32,
        gb_per_s=900,
        tera=(14, None, None, 112, None),
        pcie=(3, 16),
        capability=(7, 0),
        source="Tesla V100 data sheet, PCIe",
    ),
    _card(
        "RTX 2080 Ti",
        "2080 Ti",
        gib=11,
        gb_per_s=616,
        tera=(14.2, None, None, 57, 228),
        pcie=(3, 16),
        capability=(7, 5),
        source="Turing GPU architecture white paper, Founders Edition",
    ),
    _card(
        "RTX 3060",
        "3060",
        "RTX 3060 12GB",
        gib=12,
        gb_per_s=360,
        tera=(12.74, 12.74, 25.5, 25.5, 101.9),
        pcie=(4, 16),
        capability=(8, 6),
        source="GeForce RTX 3060 specification, ratios of the Ampere GA102 white paper",
    ),
    _card(
        "RTX 3080",
        "3080",
        "RTX 3080 10GB",
        gib=10,
        gb_per_s=760,
        tera=(29.77, 29.77, 59.5, 59.5, 238),
        pcie=(4, 16),
        capability=(8, 6),
        source="Ampere GA102 GPU architecture white paper",
    ),
    _card(
        "RTX 3090",
        "3090",
        gib=24,
        gb_per_s=936.2,
        tera=(35.58, 35.58, 71.2, 71.2, 284.6),
        pcie=(4, 16),
        capability=(8, 6),
        source="Ampere GA102 GPU architecture white paper",
    ),
    _card(
        "RTX 4060",
        "4060",
        "RTX 4060 8GB",
        gib=8,
        gb_per_s=272,
        tera=(15.11, 15.11, 30.2, 30.2, 120.9),
        pcie=(4, 8),
        capability=(8, 9),
        source="GeForce RTX 4060 specification, ratios of the Ada white paper",
    ),
    _card(
        "RTX 4060 Ti 16GB",
        "4060 Ti 16GB",
        gib=16,
        gb_per_s=288,
        tera=(22.06, 22.06, 44.1, 44.1, 176.5),
        pcie=(4, 8),
        capability=(8, 9),
        source="GeForce RTX 4060 Ti specification, ratios of the Ada white paper",
    ),
    _card(
        "RTX 4070",
        "4070",
        "RTX 4070 12GB",
        gib=12,
        gb_per_s=504.2,
        tera=(29.15, 29.15, 58.3, 58.3, 233.2),
        pcie=(4, 16),
        capability=(8, 9),
        source="GeForce RTX 4070 specification, ratios of the Ada white paper",
    ),
    _card(
        "RTX 4080",
        "4080",
        "RTX 4080 16GB",
        gib=16,
        gb_per_s=716.8,
        tera=(48.74, 48.74, 97.5, 97.5, 389.9),
        pcie=(4, 16),
        capability=(8, 9),
        source="Ada GPU architecture white paper",
    ),
    _card(
        "RTX 4090",
        "4090",
        gib=24,
        gb_per_s=1008,
        tera=(82.58, 82.58, 165.2, 165.2, 660.6),
        pcie=(4, 16),
        capability=(8, 9),
        source="Ada GPU architecture white paper",
    ),
    _card(
        "RTX 5090",
        "5090",
        gib=32,
        gb_per_s=1792,
        tera=(104.8, 104.8, 209.5, 209.5, 838),
        pcie=(5, 16),
        capability=(12, 0),
        source="RTX Blackwell GPU architecture white paper",
    ),
    _card(
        "RTX A6000",
        "A6000",
        gib=48,
        gb_per_s=768,
        tera=(38.7, 77.4, 154.8, 154.8, 309.7),
        pcie=(4, 16),
        capability=(8, 6),
        source="RTX A6000 data sheet, ratios of the Ampere GA102 white paper",
    ),
    _card(
        "A10",
        gib=24,
        gb_per_s=600,
        tera=(31.2, 62.5, 125, 125, 250),
        pcie=(4, 16),
        capability=(8, 6),
        source="A10 Tensor Core GPU data sheet",
    ),
    _card(
        "L4",
        gib=24,
        gb_per_s=300,
        tera=(30.3, 60, 121, 121, 242.5),
        pcie=(4, 16),
        capability=(8, 9),
        source="L4 Tensor Core GPU data sheet (given there with sparsity: twice as much)",
    ),
    _card(
        "L40S",
        gib=48,
        gb_per_s=864,
        tera=(91.6, 183, 362, 362, 733),
        pcie=(4, 16),
        capability=(8, 9),
        source="L40S data sheet",
    ),
    _card(
        "A100 40GB",
        "A100",
        "A100-40",
        "A100-SXM4-40GB",
        "A100-PCIE-40GB",
        gib=40,
        gb_per_s=1555,
        tera=(19.5, 156, 312, 312, 624),
        pcie=(4, 16),
        capability=(8, 0),
        source="A100 Tensor Core GPU data sheet",
    ),
    _card(
        "A100 80GB",
        "A100-80",
        "A100-SXM4-80GB",
        "A100 80GB PCIe",
        gib=80,
        gb_per_s=1935,  # the PCIe card; the SXM module has 2,039
        tera=(19.5, 156, 312, 312, 624),
        pcie=(4, 16),
        capability=(8, 0),
        source="A100 Tensor Core GPU data sheet, PCIe",
    ),
    _card(
        "H100 80GB",
        "H100",
        "H100 SXM",
        "H100 80GB HBM3",
        gib=80,
        gb_per_s=3350,
        tera=(66.9, 494.7, 989.4, 989.4, 1978.9),
        pcie=(5, 16),
        capability=(9, 0),
        source="H100 Tensor Core GPU data sheet, SXM",
    ),
    _card(
        "H200",
        "H200 SXM",
        gib=141,
        gb_per_s=4800,
        tera=(66.9, 494.7, 989.4, 989.4, 1978.9),
        pcie=(5, 16),
        capability=(9, 0),
        source="H200 Tensor Core GPU data sheet, SXM",
    ),
)
"""All cards that are known here."""

_BY_NAME = {_normalized(name): card for card in CARDS for name in (card.name, *card.aliases)}
