import random

from featherweight.guard.frames import FIT_FRAMES, REPORT_FRAME, framed


def test_a_frame_stands_around_the_last_turn_alone_and_the_report_has_one_of_its_own():
    turns = [{"role": "system", "content": "Be {kind}."}, {"role": "user", "content": "Is {x} a set?"}]
    for frame in (*FIT_FRAMES, REPORT_FRAME):
        found = framed(turns, frame, random.Random(0))
        assert found[0] == turns[0] and "Is {x} a set?" in found[1]["content"] != "Is {x} a set?"
        assert "{filler}" not in found[1]["content"]
    assert REPORT_FRAME not in FIT_FRAMES
    assert turns[1]["content"] == "Is {x} a set?"
