"""Messages of the websocket transport."""

from hypothesis import given
from hypothesis import strategies as st

from featherweight.robot.network.wire import Outbox, pack, unpack


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
