import pytest

from featherweight.config import parse_bytes
from featherweight.errors import ConfigError


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ("12GB", 12 * 10**9),
        ("24 GiB", 24 * 2**30),
        (" 1.5gib ", 3 * 2**29),
        ("16g", 2**34),
        (1000, 1000),
        ("1_000B", 1000),
        ("2TB", 2 * 10**12),
    ],
)
def test_sizes_are_read_in_powers_of_1000_and_1024(size, expected):
    assert parse_bytes(size) == expected


@pytest.mark.parametrize(
    "size", ["", "GB", "_GB", "-1GB", "0GB", 0, -5, "0.1B", "12 parsecs", "nan", "inf", "1e9", "1.2.3GB", True]
)
def test_what_is_no_positive_size_is_an_error_with_an_example(size):
    with pytest.raises(ConfigError, match="is no size; expected a positive number with a unit such as 12GB"):
        parse_bytes(size)


@pytest.mark.parametrize("size", ["12", " 1_000 ", "0", "1.5", "9" * 31])
def test_text_without_a_unit_is_refused_because_nobody_means_bytes(size):
    with pytest.raises(ConfigError, match=r"run: memory=.* has no unit; expected a size such as 12GB"):
        parse_bytes(size, where="run: memory")
