"""Bad networks, seeded."""

import time

import pytest
from robot_rooms import TOPICS, wait_for

from featherweight.errors import ConfigError
from featherweight.robot.network import Impaired, Impairment, InprocBroker
from featherweight.robot.network.impaired import ImpairedQueue

pytest.importorskip("cryptography")


def test_impaired_wraps_every_transport():
    broker = InprocBroker("lab1")
    got, arm = [], broker.join("arm1", "robot")
    arm.subscribe(TOPICS.cmd, lambda topic, message: got.append((time.monotonic(), message)))
    bad = Impaired(broker.join("alice", "operator"), Impairment(delay_s=0.05))
    start = time.monotonic()
    bad.publish(TOPICS.cmd, b"x")

    assert wait_for(lambda: got) and got[0][0] - start >= 0.05
    bad.close()
    assert not bad.is_connected


def test_an_impaired_queue_delays_loses_reorders_and_repeats_as_told_and_always_the_same():
    def run():
        queue = ImpairedQueue(Impairment(delay_s=0.15, jitter_s=0.06, loss=0.1, reorder=0.05, duplicate=0.02, seed=4))
        got, now_s = [], 0.0
        for i in range(2000):
            now_s = i / 60
            queue.push(now_s, "t", str(i).encode())
            got += [(int(message), now_s - int(message) / 60) for _, message in queue.pop(now_s)]
        return got

    got = run()
    numbers = [number for number, _ in got]
    delays = [delay for _, delay in got]

    assert got == run()
    assert 0.08 < 1 - len(set(numbers)) / 2000 < 0.13
    assert 20 < len(numbers) - len(set(numbers)) < 60
    assert 50 < sum(b < a for a, b in zip(numbers, numbers[1:], strict=False)) < 200
    assert 0.09 <= min(delays) and max(delays) < 0.34


def test_a_slow_line_spaces_messages_and_drops_what_would_wait_for_more_than_a_second():
    queue = ImpairedQueue(Impairment(rate_bytes_s=1000))
    for _ in range(30):
        queue.push(0.0, "t", bytes(100))

    assert len(queue.pop(0.55)) == 5 and len(queue.pop(10.0)) == 6


def test_presets_have_names():
    assert Impairment.preset("tokyo-dhaka").delay_s == 0.075
    with pytest.raises(ConfigError, match="Did you mean 'satellite'"):
        Impairment.preset("satelite")
