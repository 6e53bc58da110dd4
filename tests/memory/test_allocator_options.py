"""Options of the allocator, and their text."""

import pytest

from featherweight.errors import ConfigError
from featherweight.memory.allocator_options import AllocatorOptions

KIB, MIB = 2**10, 2**20


def test_sizes_are_rounded_to_divisions_of_a_power_of_two():
    options = AllocatorOptions(roundup_power2_divisions=4)
    assert [options.round(size) for size in (1, 1200, 2048, 2049, 1200 * KIB)] == [
        512,
        1536,
        2048,
        2560,
        1280 * KIB,
    ]


def test_divisions_may_depend_on_the_size():
    options = AllocatorOptions.from_text("roundup_power2_divisions:[256:1,512:2,1024:4,>:8]")
    assert options.roundup_power2_divisions == (1,) * 9 + (2, 4) + (8,) * 5
    # Powers of two that the text leaves out, 16 and 32 MiB here, are not rounded at all.
    gaps = AllocatorOptions.from_text("roundup_power2_divisions:[8:1,64:4,128:8,256:2,>:16]")
    assert gaps.roundup_power2_divisions == (1,) * 4 + (0, 0, 4, 8, 2) + (16,) * 7
    assert options.round(300 * MIB + 1) == 300 * MIB + 512
    assert options.round(600 * MIB) == 768 * MIB
    assert options.round(1030 * MIB) == 1280 * MIB


def test_text_of_the_environment_variable():
    text = "max_split_size_mb:128, garbage_collection_threshold:0.8,expandable_segments:True,backend:native"
    assert AllocatorOptions.from_text(text) == AllocatorOptions(
        max_split_size_mb=128, garbage_collection_threshold=0.8, expandable_segments=True
    )
    assert AllocatorOptions.from_text("") == AllocatorOptions()
    assert AllocatorOptions.from_text("pinned_use_background_threads:True") == AllocatorOptions()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("expandable_segment:True", r"Did you mean 'expandable_segments'\?"),
        ("expandable_segments:maybe", "expandable_segments=maybe cannot be read"),
        ("max_split_size_mb:10", "max_split_size_mb=10 is out of range; expected >= 20"),
        ("backend:cudaMallocAsync", "backend=cudaMallocAsync is another allocator"),
        ("roundup_power2_divisions:3", "roundup_power2_divisions=3 holds 3; expected 0 or a power of two"),
        ("roundup_power2_divisions:[256]", r"roundup_power2_divisions=\[256\] cannot be read"),
        ("garbage_collection_threshold:1.0", "expected >= 0.0 and < 1.0"),
    ],
)
def test_wrong_text_is_named(text, message):
    with pytest.raises(ConfigError, match=message):
        AllocatorOptions.from_text(text)


def test_wrong_number_of_divisions_is_named():
    with pytest.raises(ConfigError, match="has 2 numbers; expected one number or 16"):
        AllocatorOptions(roundup_power2_divisions=(1, 2))
