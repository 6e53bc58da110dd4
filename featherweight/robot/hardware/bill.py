"""The bill of materials: what to buy, how many, where it is used, and what it costs.

Prices are assumptions: what small quantities of each thing cost at ordinary web shops as remembered in November 2026,
in US dollars, without shipping; no shop was asked. Who orders should look first.
"""

from dataclasses import dataclass

PRICES_OF = "November 2026, assumed"
LIMIT_USD = 100.0


@dataclass(frozen=True)
class Item:
    """Something to buy.

    Attributes:
        name: what it is.
        count: how many, or kilograms for filament.
        used_for: where.
        low_usd, high_usd: price of one.
        instead: what else does.
    """

    name: str
    count: float
    used_for: str
    low_usd: float
    high_usd: float
    instead: str = ""


def bill(filament_kg: float) -> list[Item]:
    """Return the bill for the kit with a printed mass, which counts with a tenth for failed prints."""
    return [
        Item("Arduino Uno R3 (clone) with USB cable", 1, "controller", 7.0, 12.0, "Nano with ATmega328P and a shield"),
        Item(
            "standard servo, metal gear, 0.9 N m (MG996R class)",
            4,
            "joints 1-4",
            3.5,
            5.5,
            "DS3218 class; look at the case",
        ),
        Item("micro servo, 0.18 N m (SG90 class)", 2, "joint 5, gripper", 1.5, 2.5, "MG90S, stronger"),
        Item("supply 5 V, 5 A, barrel plug", 1, "servos", 7.0, 11.0, "6 V, 4 A, if the servos allow it"),
        Item("barrel jack with screw terminals", 1, "servo rail", 0.4, 0.9),
        Item("sensor shield for Uno (rows of 3 pins)", 1, "servos, potentiometers", 2.5, 4.0, "breadboard"),
        Item("switch, 5 A, in line", 1, "stop", 1.0, 2.0),
        Item("capacitor 1000 uF, 16 V", 1, "servo rail", 0.2, 0.5),
        Item("slide potentiometer 10 kOhm linear, 60 mm travel", 3, "master, translation", 1.0, 1.8),
        Item("rotary potentiometer 10 kOhm linear, 16 mm, with knob", 3, "master, rotation", 0.5, 0.9),
        Item("jumper wires, set of 40", 1, "potentiometers", 2.0, 3.5),
        Item("servo lead extension, 300 mm", 3, "joints 4, 5, gripper", 0.5, 0.9),
        Item("USB camera 720p", 1, "camera stand", 6.0, 10.0, "a phone as a webcam"),
        Item("M3 screws 8-16 mm and nuts, assorted", 1, "everything", 2.5, 4.5),
        Item("rubber tape and cable ties", 1, "finger pads, cables", 0.8, 1.5),
        Item("PLA filament, kg", round(filament_kg * 1.1, 2), "printed parts", 16.0, 22.0, "PETG"),
    ]


def total_usd(items: list[Item]) -> tuple[float, float]:
    """Return the lower and the upper end of the total."""
    return sum(item.count * item.low_usd for item in items), sum(item.count * item.high_usd for item in items)
