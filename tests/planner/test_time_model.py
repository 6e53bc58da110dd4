from collections import Counter

import pytest

from featherweight.memory.cost import StepCost
from featherweight.planner import Target
from featherweight.planner.time_model import seconds_of

CARD = Target.of(device="rtx4090")
"""Peaks 165.2 TFLOP/s in bfloat16 and 1008 GB/s; defaults: 0.6 and 0.8 of them, 8 us a launch."""


def test_arithmetic_and_traffic_add_up():
    cost = StepCost(Counter(bfloat16=10**15), moved_bytes=10**12, launches=1)
    assert seconds_of(cost, CARD) == pytest.approx(1000 / (165.2 * 0.6) + 1000 / (1008 * 0.8), rel=1e-3)


def test_each_precision_has_its_rate():
    half, single, int8 = (
        seconds_of(StepCost(Counter({name: 10**15})), CARD) for name in ("float16", "float32", "int8")
    )
    assert single / half == pytest.approx(165.2 / 82.58, rel=1e-3)
    assert half / int8 == pytest.approx(660.6 / 165.2, rel=1e-3)


def test_many_small_kernels_are_bound_by_their_launches():
    assert seconds_of(StepCost(Counter(bfloat16=10**6), 10**6, launches=10**6), CARD) == pytest.approx(8.0)


def test_copies_run_beside_the_rest_until_they_take_longer():
    work = StepCost(Counter(bfloat16=10**14))
    alone = seconds_of(work, CARD)
    rate = CARD.calibration.h2d_bytes_per_s
    hidden, bound = (StepCost(work.flops, host_bytes=int(share * alone * rate)) for share in (0.9, 3.0))
    assert seconds_of(hidden, CARD) == alone
    assert seconds_of(bound, CARD) == pytest.approx(3 * alone, rel=1e-6)


def test_a_cpu_has_customary_rates():
    cost = StepCost(Counter(float32=10**11, bfloat16=10**11), moved_bytes=2 * 10**10, launches=10**9)
    assert seconds_of(cost, Target.of("1GB", "cpu")) == pytest.approx(3.0)


def test_an_empty_step_takes_no_time():
    assert seconds_of(StepCost(), CARD) == seconds_of(StepCost(), Target.of("1GB", "cpu")) == 0
