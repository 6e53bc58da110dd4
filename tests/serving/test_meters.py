import math

from featherweight.guard.verdict import Verdict
from featherweight.serving.meters import Meters


def test_counts_are_those_of_this_server_alone_and_a_score_that_is_no_number_is_not_observed():
    meters, other = Meters(), Meters()
    meters.count_request("/v1/models", 200)
    meters.count_verdict(Verdict(True, 3.0, "probe", 5), "block")
    meters.count_verdict(Verdict(True, math.nan, "probe", 2, error="x"), "block")
    meters.count_answer(7, {"prefill": 0.1})
    shown = meters.text(2, 3)[0].decode()
    for line in (
        'featherweight_requests_total{endpoint="/v1/models",status="200"} 1.0',
        'featherweight_guard_verdicts_total{verdict="block"} 2.0',
        "featherweight_guard_score_count 1.0",
        "featherweight_guard_probe_tokens_total 7.0",
        "featherweight_answer_tokens_total 7.0",
        'featherweight_requests_now{state="waiting"} 2.0',
    ):
        assert line in shown
    assert "block" not in other.text(0, 0)[0].decode()
