import pytest

from featherweight.errors import ConfigError
from featherweight.memory.cards import CARDS, find_card


@pytest.mark.parametrize(
    ("name", "card"),
    [
        ("rtx4090", "RTX 4090"),
        ("4090", "RTX 4090"),
        ("RTX-4090", "RTX 4090"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("NVIDIA GeForce RTX 2080 Ti", "RTX 2080 Ti"),
        ("Tesla T4", "T4"),
        ("Tesla V100-SXM2-32GB", "V100 32GB"),
        ("NVIDIA A100-SXM4-40GB", "A100 40GB"),
        ("NVIDIA A100-SXM4-80GB", "A100 80GB"),
        ("NVIDIA A100 80GB PCIe", "A100 80GB"),
        ("NVIDIA H100 80GB HBM3", "H100 80GB"),
        ("h100", "H100 80GB"),
        ("NVIDIA H200", "H200"),
        ("l4", "L4"),
        ("a100", "A100 40GB"),
        ("v100", "V100 16GB"),
    ],
)
def test_cards_are_found_in_the_spellings_of_users_and_of_torch(name, card):
    assert find_card(name).name == card


def test_a_wrong_name_gets_the_nearest_card():
    with pytest.raises(ConfigError, match=r"name='rtx 4091' is no card.*Did you mean 'RTX 4090'\?"):
        find_card("rtx 4091")
    with pytest.raises(ConfigError, match="Known: T4, V100 16GB"):
        find_card("???")


def test_names_and_aliases_belong_to_one_card_each():
    for card in CARDS:
        for name in (card.name, *card.aliases):
            assert find_card(name) is card  # mutation: an alias given twice would win for the later card only


def test_link_rates_are_those_of_the_pcie_standard():
    # One direction, after 128b/130b coding: 15.75, 31.5 and 63.0 GB/s for 16 lanes of generations 3, 4 and 5.
    assert find_card("T4").host_bytes_per_s == pytest.approx(15.754e9, rel=1e-4)
    assert find_card("A100").host_bytes_per_s == pytest.approx(31.508e9, rel=1e-4)
    assert find_card("RTX 4060").host_bytes_per_s == pytest.approx(15.754e9, rel=1e-4)
    assert find_card("H100").host_bytes_per_s == pytest.approx(63.015e9, rel=1e-4)


def test_a_precision_without_a_unit_runs_at_the_rate_of_float32():
    t4 = find_card("T4")
    assert t4.bf16_flop_per_s is None
    assert t4.peak_flop_per_s("bf16") == t4.peak_flop_per_s("tf32") == t4.peak_flop_per_s("fp32") == 8.1e12
    assert find_card("A100").peak_flop_per_s("bf16") == 312e12


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
def test_rates_keep_the_ratios_of_their_generation(card):
    """What a slip in the table would break: tensor cores are whole multiples of each other and of the float32 units."""
    has_bf16 = card.capability >= (8, 0)
    assert (card.bf16_flop_per_s is not None) == (card.tf32_flop_per_s is not None) == has_bf16
    if card.int8_op_per_s is not None:
        # GeForce halves the rate of sums in float32, which int8 does not use.
        ratio = card.int8_op_per_s / card.fp16_flop_per_s
        assert min(abs(ratio / 2 - 1), abs(ratio / 4 - 1)) < 0.015  # three digits in the data sheets
    if has_bf16:
        assert card.bf16_flop_per_s == card.fp16_flop_per_s
        assert card.bf16_flop_per_s / card.tf32_flop_per_s == pytest.approx(2, rel=0.015)
    # From 71 operations per byte (RTX 3060) to 419 (L40S): a slip of a power of ten falls out of this.
    assert 50 < card.fp16_flop_per_s / card.memory_bytes_per_s < 500
