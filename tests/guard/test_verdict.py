from featherweight.guard.verdict import predict_costs


def test_costs_are_those_of_the_formulas():
    # Example of the paper's kind: n = 200, P = 8, T = 500.
    unguarded = 200 + 500 - 1
    for probe, parallel, extra, steps in (
        (50, False, 8 + 50 - 1, 50),
        (12, False, 8 + 12 - 1, 12),
        (12, True, 8 + 12 - 1 + 7, 0),
        (0, False, 8, 1),
    ):
        found = predict_costs(200, 8, probe, 500, parallel=parallel)
        assert (found.unguarded_forwards, found.extra_forwards, found.extra_steps) == (unguarded, extra, steps)
    assert predict_costs(200, 0, 0, 500).extra_forwards == predict_costs(200, 0, 0, 500).extra_steps == 0
