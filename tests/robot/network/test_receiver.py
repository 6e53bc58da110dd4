"""What the follower drops, and why."""

import math

from featherweight.robot.network import CommandFrame, CommandReceiver
from featherweight.robot.network.lease import Lease

MS = 1_000_000


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


def test_frames_up_to_a_pause_are_late_and_those_of_another_session_are_not_its_business():
    receiver, sender, _, now_ns = ready_receiver()
    receiver.skip(5, 8)
    receiver.skip(6, 100)
    receiver.skip(5, "100")
    answers = [receiver.receive(sender.frame(now_ns + i * MS), now_ns + i * MS) for i in range(1, 5)]
    assert answers[:3] == [None] * 3 and answers[3] == (1.0,) * 6
    assert receiver.counters["late"] + receiver.counters["duplicate"] == 3
