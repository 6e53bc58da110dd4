import json
import math

from featherweight.guard.verdict import Verdict
from featherweight.serving.reply import Reply, verdict_details

BLOCKED = Verdict(True, math.nan, "probe", 3, "secret words", "the score is not a finite number")


def made(**options):
    return Reply("m", **{"is_chat": True, "prompt_tokens": 5, "with_details": False, **options})


def test_a_flagged_answer_has_a_refusal_instead_of_content_and_no_score():
    found = made().whole("", "content_filter", 0, BLOCKED, "No.")
    assert found["choices"][0]["message"] == {"role": "assistant", "content": None, "refusal": "No."}
    assert found["usage"]["completion_tokens_details"] == {"guard_probe_tokens": 3}
    assert "guard" not in found and "secret" not in json.dumps(found)


def test_details_are_told_on_request_and_are_valid_json_even_if_the_score_is_not():
    found = made(with_details=True).whole("", "content_filter", 0, BLOCKED, "No.")
    assert found["guard"] == verdict_details(BLOCKED) and found["guard"]["score"] is None
    json.dumps(found, allow_nan=False)


def test_pieces_are_events_with_one_line_of_json():
    reply = made()
    for line in (reply.piece("a\nb"), reply.piece(is_first=True), reply.end("stop", None), reply.usage_piece(2, None)):
        assert line.startswith("data: {") and line.endswith("}\n\n") and line.count("\n") == 2
    assert json.loads(reply.piece("a\nb")[6:])["choices"][0]["delta"] == {"content": "a\nb"}
    assert json.loads(made(is_chat=False).piece("a")[6:])["choices"][0]["text"] == "a"
