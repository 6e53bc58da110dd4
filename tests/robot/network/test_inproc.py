"""Roles inside one process."""

from robot_bench import TOPICS, Bench

from featherweight.robot.network import CommandFrame


def test_an_observer_can_stop_nothing_and_move_nothing():
    bench = Bench()
    bench.operator()
    assert bench.run(10.0, bench.active)
    eve = bench.broker.join("eve", "observer")

    eve.publish(TOPICS.ctl, b'{"type": "stop"}')
    eve.publish(TOPICS.cmd, CommandFrame(1, 1, 0, 0, 0, (0.0,) * 6).encode())
    bench.run(1.0)

    assert bench.active() and bench.broker.refused == 2
    assert bench.side.receiver.counters["lease"] == 0
