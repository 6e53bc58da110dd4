"""One operator at a time."""

from featherweight.robot.network.lease import Lease


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
