"""The bill of materials."""

from featherweight.robot.hardware.bill import LIMIT_USD, PRICES_OF, bill, total_usd
from featherweight.robot.hardware.guide import printed_kg
from featherweight.robot.kit import POTENTIOMETERS, SERVOS


def test_the_upper_end_of_the_total_is_below_a_hundred_dollars(assembly):
    low, high = total_usd(bill(printed_kg(assembly)))
    assert 40 < low < high < LIMIT_USD


def test_counts_are_those_of_the_kit_and_prices_say_their_date_and_that_they_are_assumed(assembly):
    items = bill(printed_kg(assembly))
    assert sum(item.count for item in items if "servo" in item.name and "N m" in item.name) == SERVOS
    assert sum(item.count for item in items if "potentiometer" in item.name) == POTENTIOMETERS
    assert all(0 < item.low_usd < item.high_usd for item in items)
    assert "2026" in PRICES_OF and "assumed" in PRICES_OF
