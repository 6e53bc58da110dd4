import random

from featherweight.memory.ledger import CATEGORIES, Entry, Ledger


def open_entry(ledger, size_bytes, category, phase="other"):
    entry = Entry(size_bytes, category, phase)
    ledger.open(entry)
    return entry


def test_peak_belongs_to_one_moment_and_maxima_to_their_own():
    ledger = Ledger()
    weights = open_entry(ledger, 100, "weights")
    first = open_entry(ledger, 30, "temporaries")
    ledger.close(first)
    open_entry(ledger, 50, "gradients", phase="backward")

    assert (ledger.live_bytes, ledger.peak_bytes, ledger.peak_phase) == (150, 150, "backward")
    # Mutation: a ledger that kept maxima only would put the 30 bytes of temporaries into the peak.
    assert ledger.peak_by_category == {**dict.fromkeys(CATEGORIES, 0), "weights": 100, "gradients": 50}
    assert ledger.max_by_category["temporaries"] == 30
    ledger.close(weights)
    assert ledger.peak_by_category["weights"] == 100  # dead since, but alive at the peak


def test_role_found_within_the_step_holds_from_birth():
    ledger = Ledger()
    moment = open_entry(ledger, 80, "temporaries", phase="optimizer")
    scratch = open_entry(ledger, 10, "temporaries", phase="optimizer")
    ledger.close(scratch)
    assert ledger.relabel(moment, "optimizer_state", "layer.weight") is moment
    ledger.settle()

    assert ledger.peak_by_category["optimizer_state"] == 80
    assert ledger.max_by_category["temporaries"] == 10  # not 90


def test_role_changed_after_settling_counts_from_then_and_moves_no_total():
    ledger = Ledger()
    entry = open_entry(ledger, 80, "other")
    ledger.settle()
    successor = ledger.relabel(entry, "inputs", "")

    assert successor is not entry
    assert (ledger.live_bytes, ledger.peak_bytes) == (80, 80)
    assert ledger.live_by_category["inputs"] == 80 and ledger.live_by_category["other"] == 0
    assert ledger.peak_by_category["other"] == 80  # the peak was reached while it was "other"
    assert ledger.max_by_category["other"] == 80 and ledger.max_by_category["inputs"] == 80


def test_forward_result_that_dies_before_backward_was_a_temporary():
    ledger = Ledger()
    kept = open_entry(ledger, 16, "activations", phase="forward")
    ledger.close(open_entry(ledger, 4, "activations", phase="forward"))
    ledger.end_forward()
    ledger.close(kept)

    assert ledger.max_by_category["activations"] == 16
    assert ledger.max_by_category["temporaries"] == 4
    assert ledger.peak_by_category["activations"] == 16 and ledger.peak_by_category["temporaries"] == 4


def test_reset_peak_starts_from_what_is_alive():
    ledger = Ledger()
    open_entry(ledger, 100, "weights")
    ledger.close(open_entry(ledger, 900, "temporaries"))
    ledger.reset_peak()

    assert ledger.peak_bytes == ledger.live_bytes == 100
    assert ledger.max_by_category == ledger.peak_by_category == ledger.live_by_category
    open_entry(ledger, 7, "gradients", phase="backward")
    assert (ledger.peak_bytes, ledger.peak_phase) == (107, "backward")


def test_random_history_agrees_with_a_ledger_that_copies_everything():
    generator = random.Random(0)
    ledger, live = Ledger(), {}
    peak_bytes, peak, maxima = 0, dict.fromkeys(CATEGORIES, 0), dict.fromkeys(CATEGORIES, 0)
    for step in range(2000):
        if live and generator.random() < 0.48:
            ledger.close(live.pop(generator.choice(list(live))))
        elif live and generator.random() < 0.1:
            key = generator.choice(list(live))
            live[key] = ledger.resize(live[key], generator.randrange(100))
        else:
            # without activations: their late renaming has its own test
            category = generator.choice([name for name in CATEGORIES if name != "activations"])
            live[step] = open_entry(ledger, generator.randrange(100), category)
        if generator.random() < 0.01:
            ledger.settle()
        totals = dict.fromkeys(CATEGORIES, 0)
        for entry in live.values():
            totals[entry.category] += entry.size_bytes
        maxima = {name: max(maxima[name], totals[name]) for name in CATEGORIES}
        if sum(totals.values()) > peak_bytes:
            peak_bytes, peak = sum(totals.values()), totals

    assert ledger.live_by_category == totals and ledger.live_bytes == sum(totals.values())
    assert ledger.peak_by_category == peak and ledger.peak_bytes == peak_bytes
    assert ledger.max_by_category == maxima
