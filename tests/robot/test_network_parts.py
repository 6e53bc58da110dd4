"""Frames, clocks, lease, receiver, impairments: the parts of a network session, without threads."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featherweight.errors import ConfigError
from featherweight.robot.network import (
    ClockEstimate,
    CommandFrame,
    CommandReceiver,
    FrameError,
    Impairment,
    StateFrame,
    Topics,
)
from featherweight.robot.network.impaired import ImpairedQueue
from featherweight.robot.network.lease import Lease
from featherweight.robot.network.topics import may_publish, may_subscribe
from featherweight.robot.network.wire import Outbox, pack, unpack
from featherweight.robot.safety.mode import Mode

U64, I64, U32 = st.integers(0, 2**64 - 1), st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**32 - 1)
ANGLES = st.lists(st.floats(width=32, allow_nan=False), min_size=6, max_size=6).map(tuple)
MS = 1_000_000


@given(U64, U64, I64, I64, U32, ANGLES)
def test_command_frames_survive_the_wire(session, sequence, sent_ns, echo_ns, hold_us, angles):
    frame = CommandFrame(session, sequence, sent_ns, echo_ns, hold_us, angles)

    assert CommandFrame.decode(frame.encode()) == frame
    assert len(frame.encode()) == 72


@given(U64, U64, I64, I64, U32, ANGLES, st.sampled_from(list(Mode)), st.booleans(), st.booleans())
def test_state_frames_survive_the_wire(session, sequence, sent_ns, echo_ns, hold_us, angles, mode, limits_hit, is_lost):
    frame = StateFrame(
        session, sequence, sent_ns, echo_ns, hold_us, angles, mode, limits_hit, is_lost, sequence, sent_ns
    )

    assert StateFrame.decode(frame.encode()) == frame


def test_every_single_flipped_bit_is_noticed():
    command = CommandFrame(7, 8, 9, 10, 11, (1.0, 2.0, 3.0, 4.0, 5.0, 6.0))
    state = StateFrame(7, 8, 9, 10, 11, (1.0, 2.0, 3.0, 4.0, 5.0, 6.0), Mode.ACTIVE, True, False, 12, 13)
    for frame in (command, state):
        data = frame.encode()
        for bit in range(8 * len(data)):
            broken = bytearray(data)
            broken[bit // 8] ^= 1 << (bit % 8)
            with pytest.raises(FrameError):
                type(frame).decode(bytes(broken))


@given(st.binary(max_size=200))
def test_random_bytes_are_no_frame(data):
    for kind in (CommandFrame, StateFrame):
        with pytest.raises(FrameError):
            kind.decode(data)


def simulate_clock(delay_ms, jitter_ms, loss, offset_ns, seconds=20.0, seed=0, asymmetry_ms=0.0):
    """Let two clocks exchange frames; return (estimate, worst round-trip error, worst age error) in ns."""
    chance = random.Random(seed)
    estimate, worst_rtt, worst_age = ClockEstimate(), 0, 0
    now = 1_000_000_000
    for _ in range(int(seconds * 60)):
        now += 16_666_667
        there = round((delay_ms + asymmetry_ms + chance.uniform(-jitter_ms, jitter_ms)) * MS)
        back = round((delay_ms + chance.uniform(-jitter_ms, jitter_ms)) * MS)
        hold = round(chance.uniform(0, 16) * MS)
        if chance.random() < loss:
            continue
        # We sent at `now`; the other side got it, held it and sent its own frame, which came back.
        sent_other = now + there + hold + offset_ns
        came = now + there + hold + back
        round_trip = estimate.add(came, sent_other, now, hold // 1000)
        worst_rtt = max(worst_rtt, abs(round_trip - there - back))
        age = estimate.age_ns(came, sent_other)
        if age is not None:
            worst_age = max(worst_age, abs(age - back) - estimate.uncertainty_ns)
    return estimate, worst_rtt, worst_age


@pytest.mark.parametrize("offset_ns", [0, 3_600_000_000_000, -(10**15)])
@pytest.mark.parametrize("asymmetry_ms", [0.0, 40.0])
def test_round_trips_and_ages_are_right_within_their_uncertainty_whatever_the_clocks(offset_ns, asymmetry_ms):
    estimate, worst_rtt, worst_age = simulate_clock(100, 30, 0.05, offset_ns, asymmetry_ms=asymmetry_ms)

    assert estimate.is_known and worst_rtt < 2 * MS
    assert worst_age <= 0


def test_frames_that_echo_nothing_of_ours_tell_nothing():
    clock = ClockEstimate()

    assert clock.add(10**10, 5, 0, 0) is None and clock.add(10**10, 5, 2 * 10**10, 0) is None
    assert clock.add(2 * 10**10, 5, 10**9, 0) is None and clock.add(10**10, 5, 10**10 - 1000, 100) is None
    assert not clock.is_known and clock.age_ns(10**10, 5) is None


class Sender:
    """An operator with a clock of its own."""

    def __init__(self, session=5, offset_ns=10**15, delay_ms=20):
        self.session, self.offset_ns, self.delay_ms, self.sequence = session, offset_ns, delay_ms, 0

    def frame(self, now_ns, angles=(1.0,) * 6, sequence=None, age_ms=None, echoes=True):
        """Return a frame that arrives at `now_ns`, having echoed a stamp that the follower sent two ways ago."""
        self.sequence = self.sequence + 1 if sequence is None else self.sequence
        delay_ns = round((self.delay_ms if age_ms is None else age_ms) * MS)
        echo_ns = now_ns - delay_ns - self.delay_ms * MS if echoes else 0
        return CommandFrame(
            self.session,
            self.sequence if sequence is None else sequence,
            now_ns - delay_ns + self.offset_ns,
            echo_ns,
            0,
            angles,
        ).encode()


def ready_receiver(session=5):
    lease = Lease()
    lease.request(session, "alice", False, 100.0)
    receiver, sender = CommandReceiver(lease), Sender(session)
    now_ns = 100 * 10**9
    for _ in range(5):
        now_ns += 16 * MS
        receiver.receive(sender.frame(now_ns), now_ns)
    assert receiver.counters == {"unsynchronised": 2, "accepted": 3}
    receiver.counters.clear()
    return receiver, sender, lease, now_ns


def test_each_reason_drops_a_frame_and_counts_it():
    receiver, sender, _, now_ns = ready_receiver()
    good = sender.frame(now_ns)
    assert receiver.receive(good, now_ns) == (1.0,) * 6
    assert receiver.receive(good, now_ns) is None
    receiver.receive(sender.frame(now_ns, sequence=3), now_ns)
    receiver.receive(sender.frame(now_ns, age_ms=300), now_ns)
    receiver.receive(sender.frame(now_ns, (math.nan,) * 6), now_ns)
    receiver.receive(sender.frame(now_ns, (1, 2, math.inf, 4, 5, 6)), now_ns)
    receiver.receive(Sender(6).frame(now_ns), now_ns)
    receiver.receive(b"FWT1", now_ns)
    receiver.receive(bytes(72), now_ns)
    broken = bytearray(sender.frame(now_ns))
    broken[50] ^= 1
    receiver.receive(bytes(broken), now_ns)

    assert receiver.counters == {
        **{
            "accepted": 1,
            "duplicate": 1,
            "late": 1,
            "old": 1,
            "not finite": 2,
            "lease": 1,
            "size": 1,
            "magic": 1,
            "crc": 1,
        }
    }


def test_a_clock_that_jumps_is_noticed_and_measured_anew():
    for jump_ns in (3_600_000_000_000, -3_600_000_000_000):
        receiver, sender, _, now_ns = ready_receiver()
        sender.offset_ns += jump_ns
        for _ in range(6):
            now_ns += 16 * MS
            receiver.receive(sender.frame(now_ns), now_ns)

        assert receiver.counters["clock"] == 1 and receiver.counters["accepted"] >= 2


def test_a_recording_is_refused_whatever_it_replays():
    receiver, sender, lease, now_ns = ready_receiver()
    recorded = []
    for _ in range(5):
        now_ns += 16 * MS
        recorded.append(sender.frame(now_ns))
        receiver.receive(recorded[-1], now_ns)
    receiver.counters.clear()

    for frame in recorded:  # within the session
        assert receiver.receive(frame, now_ns + 16 * MS) is None
    lease.release(5)
    assert not lease.request(5, "eve", False, now_ns / 1e9 + 1)  # the session is worth nothing any more
    for frame in recorded:
        assert receiver.receive(frame, now_ns + 10**9) is None
    # After a restart the robot knows no old session; but then nobody has echoed its new stamps.
    fresh = Lease()
    fresh.request(5, "eve", False, 10**4)
    restarted = CommandReceiver(fresh)
    for frame in recorded:
        assert restarted.receive(frame, 10**13) is None
    assert set(restarted.counters) == {"unsynchronised"}


def test_one_operator_at_a_time_until_silence_release_or_an_instructor():
    lease = Lease(expiry_s=2.0)

    assert lease.request(1, "alice", False, 0.0) and not lease.request(2, "bob", False, 1.0)
    lease.renew(1.5)
    assert lease.owns(1, 3.4) and not lease.owns(1, 3.6)
    assert lease.request(2, "bob", False, 3.7) and not lease.request(1, "alice", False, 3.8)
    assert lease.request(3, "teacher", True, 4.0) and lease.holder.name == "teacher"
    assert not lease.request(4, "other teacher", True, 4.1)
    assert not lease.release(2) and lease.release(3) and lease.holder is None
    assert not lease.request(0, "nobody", True, 5.0)


@pytest.mark.parametrize(
    ("role", "topic", "publish", "subscribe"),
    [
        ("robot", "fw/lab/arm/state", True, False),
        ("robot", "fw/lab/other/state", False, False),
        ("robot", "fw/lab/arm/cmd", False, True),
        ("robot", "fw/lab/arm/cam/front", True, False),
        ("operator", "fw/lab/arm/cmd", True, False),
        ("operator", "fw/lab/arm/ctl", True, False),
        ("operator", "fw/lab/arm/ctl-instructor", False, False),
        ("operator", "fw/lab/arm/state", False, True),
        ("instructor", "fw/lab/arm/ctl-instructor", True, False),
        ("observer", "fw/lab/arm/cmd", False, False),
        ("observer", "fw/lab/arm/cam/front", False, True),
        ("observer", "fw/other/arm/state", False, False),
        ("operator", "fw/other/arm/cmd", False, False),
        ("nobody", "fw/lab/arm/state", False, False),
        ("operator", "fw/lab", False, False),
    ],
)
def test_roles_may_do_what_they_need_and_nothing_else(role, topic, publish, subscribe):
    assert may_publish(role, topic, "lab", "arm") is publish
    assert may_subscribe(role, topic, "lab", "arm") is subscribe


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


def test_an_outbox_keeps_the_newest_command_and_every_request():
    outbox = Outbox()
    for i in range(5):
        outbox.put("fw/lab/arm/cmd", str(i).encode())
        outbox.put("fw/lab/arm/ctl", str(i).encode())

    frames = []
    while (frame := outbox.get()) is not None:
        frames.append(unpack(frame))

    assert frames == [*(("fw/lab/arm/ctl", str(i).encode()) for i in range(5)), ("fw/lab/arm/cmd", b"4")]


@given(st.binary(max_size=100))
def test_a_malformed_message_is_none_and_never_an_exception(data):
    unpacked = unpack(data)

    assert unpacked is None or pack(*unpacked) == data


def test_names_that_would_break_topics_are_refused():
    for name in ("", "a/b", "*", "a b", "..", "x" * 65):
        with pytest.raises(ConfigError, match="is no name"):
            Topics("lab1", name)
