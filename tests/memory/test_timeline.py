import random
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from featherweight.memory.ledger import CATEGORIES, Ledger
from featherweight.memory.ledger import Entry as LedgerEntry
from featherweight.memory.timeline import MARK, SMALL_BYTES, Event, Timeline, extend, starred
from featherweight.memory.tracker import StorageTracker

BIG = SMALL_BYTES


def event(change_bytes, op="mm", category="activations", phase="forward", module="layers.*", shape=(4, 4)):
    return Event(change_bytes, category, phase, op, module, shape, "torch.float32")


MARKED = event(0, MARK, "other", "other", "", ())
WEIGHT = event(1000, "", "weights", "other")
OUTPUT, OUTPUT_ENDS = event(300), event(-300)
GRADIENT, GRADIENT_ENDS = (event(sign * 500, "mm", "gradients", "backward") for sign in (1, -1))
SCRATCH, SCRATCH_ENDS = (event(sign * 700, "sqrt", "temporaries", "optimizer") for sign in (1, -1))
# Two steps: in the first the peak is in the backward pass, in the second at the optimizer.
STEPS = Timeline(
    [WEIGHT, MARKED, OUTPUT, GRADIENT, OUTPUT_ENDS, GRADIENT_ENDS]
    + [MARKED, OUTPUT, GRADIENT, OUTPUT_ENDS, SCRATCH, SCRATCH_ENDS, GRADIENT_ENDS]
)


# -- sums --------------------------------------------------------------------------------------------------------------


def test_live_bytes_and_marks_are_those_of_a_hand_made_timeline():
    first = [1000, 1000, 1300, 1800, 1500, 1000]
    assert STEPS.live_bytes == [*first, 1000, 1300, 1800, 1500, 2200, 1500, 1000]
    assert STEPS.marks == [1, 6]
    assert STEPS.peak_bytes == 2200


def test_each_step_has_its_own_peak_and_the_parts_of_that_moment():
    first, second = STEPS.peak(1), STEPS.peak(2)
    assert (first.size_bytes, first.index, first.phase) == (1800, 3, "backward")
    assert (second.size_bytes, second.index, second.phase) == (2200, 10, "optimizer")
    assert STEPS.peak() == second
    parts = {"weights": 1000, "activations": 300, "gradients": 500}
    assert first.by_category == {**dict.fromkeys(CATEGORIES, 0), **parts}
    parts = {"weights": 1000, "temporaries": 700, "gradients": 500}
    assert second.by_category == {**dict.fromkeys(CATEGORIES, 0), **parts}


def test_the_first_of_equal_peaks_is_the_peak():
    twice = Timeline([WEIGHT, OUTPUT, OUTPUT_ENDS, OUTPUT])
    assert twice.peak().index == 1


def test_maxima_of_a_step_are_those_of_its_own_moments():
    assert STEPS.max_by_category(1)["temporaries"] == 0
    assert STEPS.max_by_category(2)["temporaries"] == STEPS.max_by_category()["temporaries"] == 700
    # What a step inherits counts, even if it ends at once.
    inherited = Timeline([MARKED, OUTPUT, MARKED, OUTPUT_ENDS])
    assert inherited.max_by_category(2)["activations"] == 300


def test_what_is_alive_is_counted_by_kind_with_the_most_bytes_first():
    timeline = Timeline([WEIGHT, OUTPUT, OUTPUT, OUTPUT, OUTPUT, OUTPUT_ENDS, SCRATCH, SCRATCH_ENDS])
    assert [(one.size_bytes, one.category, count) for one, count in timeline.alive_at(4)] == [
        (300, "activations", 4),
        (1000, "weights", 1),
    ]
    at_the_end = {one.category: count for one, count in timeline.alive_at(7)}
    assert at_the_end == {"weights": 1, "activations": 3}


@pytest.mark.parametrize("points", [1, 2, 3, 400])
def test_a_series_for_a_picture_contains_the_peak(points):
    series = STEPS.series(points)
    sums = [sum(values) for values in zip(*series.values(), strict=True)]
    assert max(sums) == STEPS.peak_bytes
    assert len(sums) <= 2 * points + 2 and set(series) == set(CATEGORIES)
    if points == 400:
        assert sums == STEPS.live_bytes


def test_a_timeline_without_events_is_empty():
    empty = Timeline([])
    assert (empty.peak_bytes, empty.live_bytes, empty.marks, empty.numbered()) == (0, [], [], [])
    assert set(empty.max_by_category().values()) == {0}
    assert not any(empty.series().values())


def test_numbers_of_layers_become_stars():
    assert starred("model.layers.11.mlp.down_proj.weight") == "model.layers.*.mlp.down_proj.weight"
    assert starred("") == "" and starred("h2.7") == "h2.*"


# -- pairs -------------------------------------------------------------------------------------------------------------


def check_pairs(timeline):
    """Each number is born once and ends at most once, later, with the bytes that it was born with."""
    pairs, sizes, ended = timeline.numbered(), {}, set()
    assert [size for _, size in pairs] == [one.change_bytes for one in timeline.events if one.change_bytes]
    for number, size in pairs:
        if size > 0:
            assert number not in sizes
            sizes[number] = size
        else:
            assert number not in ended and sizes[number] == -size
            ended.add(number)
    survivors = sum(size for number, size in sizes.items() if number not in ended)
    assert survivors == (timeline.live_bytes or [0])[-1]
    return pairs


def test_every_end_has_the_number_of_its_birth():
    assert check_pairs(STEPS)[:5] == [(0, 1000), (1, 300), (2, 500), (1, -300), (2, -500)]


def test_of_equal_storages_the_youngest_ends_first():
    assert check_pairs(Timeline([OUTPUT, OUTPUT, OUTPUT_ENDS, OUTPUT])) == [(0, 300), (1, 300), (1, -300), (2, 300)]


def test_pairs_of_a_real_step_follow_every_storage():
    model = nn.Sequential(*[nn.Linear(16, 16) for _ in range(3)])
    optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
    with StorageTracker(model, optimizer, keep_history=True) as tracker:
        for _ in range(2):
            tracker.mark_step()
            model(torch.ones(8, 16)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    timeline = tracker.timeline()
    check_pairs(timeline)
    assert len(timeline.marks) == 2
    assert timeline.peak().by_category == tracker.peak_by_category
    assert timeline.peak_bytes == tracker.peak_bytes
    assert timeline.max_by_category() == tracker.max_by_category


def test_a_ledger_s_history_is_its_books():
    # Slow twin: the same random births, ends, changes of size and role, summed by the ledger itself.
    draw, ledger, live = random.Random(1), Ledger(keep_history=True), {}
    for step in range(1500):
        action = draw.random()
        if live and action < 0.4:
            ledger.close(live.pop(draw.choice(list(live))))
        elif live and action < 0.5:
            key = draw.choice(list(live))
            live[key] = ledger.resize(live[key], draw.randrange(1, 100))
        elif live and action < 0.6:
            key = draw.choice(list(live))
            live[key] = ledger.relabel(live[key], draw.choice(CATEGORIES[:5]), "renamed")
        else:
            live[step] = LedgerEntry(draw.randrange(1, 100), draw.choice(CATEGORIES), "backward", module="h.3")
            ledger.open(live[step])
        if action > 0.995:
            ledger.settle()
    timeline = Timeline.of_history(ledger.history)
    check_pairs(timeline)
    assert timeline.live_bytes[-1] == ledger.live_bytes and timeline.peak_bytes == ledger.peak_bytes
    assert timeline.peak().by_category == ledger.peak_by_category
    assert timeline.max_by_category() == ledger.max_by_category
    assert {one.module for one in timeline.events} == {"h.*", "renamed"}


def test_no_history_is_kept_unasked():
    assert Ledger().history is None
    with StorageTracker() as tracker:
        tracker.mark_step()
        torch.ones(3)
    with pytest.raises(AssertionError, match="keep_history"):
        tracker.timeline()


# -- more layers -------------------------------------------------------------------------------------------------------


def training(layers, block, loops, ends=("embedding", "head"), norms=4, name=str):
    """Two steps of a model of equal layers, as a list of events.

    Args:
        layers: how many.
        block: of one layer, (bytes of the weight, bytes kept for the backward pass, bytes that are freed at once) for
            each of its operators.
        loops: bytes of the temporary of each loop of the optimizer over the parameters.
        ends: what stands before and after the layers.
        norms: bytes of each parameter in the list of norms.
        name: of the k-th operator of a block.
    """
    events = []

    def born(size, op, category, phase="forward", module="layers.*"):
        events.append(event(size, op, category, phase, module))
        return events[-1]

    def end(one):
        events.append(one._replace(change_bytes=-one.change_bytes))

    stack = [(f"h.{layer}", index, sizes) for layer in range(layers) for index, sizes in enumerate(block)]
    whole = [(ends[0], 0, (BIG + 1, BIG + 2, 0))] + stack + [(ends[1], 0, (BIG + 3, BIG + 4, BIG + 5))]
    for module, index, (weight, _, _) in whole:
        born(weight, f"init{name(index)}", "weights", "other", starred(module))
    for _ in range(2):
        events.append(MARKED)
        kept = []
        for module, index, (_, saved, scratch) in whole:
            if scratch:
                end(born(scratch, f"scratch{name(index)}", "temporaries", "forward", starred(module)))
            kept.append(born(saved, f"keep{name(index)}", "activations", "forward", starred(module)))
        gradients = []
        for (module, index, (weight, _, _)), activation in zip(reversed(whole), reversed(kept), strict=True):
            gradients.append(born(weight, f"grad{name(index)}", "gradients", "backward", starred(module)))
            end(activation)
        # One number for each parameter: a storage that grows with the layers.
        end(born(norms * len(whole), "stack", "temporaries", "other", ""))
        for number, size in enumerate(loops):
            for module, index, _ in whole:
                end(born(size, f"loop{number} {name(index)}", "temporaries", "optimizer", starred(module)))
        for gradient in gradients:
            end(gradient)
    return Timeline(events)


OPERATOR = st.tuples(st.integers(1, 2**24), st.integers(1, 2**24), st.integers(0, 2**24))
PROGRAMS = {
    "block": st.lists(OPERATOR, min_size=1, max_size=12),
    "loops": st.lists(st.integers(1, 2**20), max_size=4),
    "norms": st.integers(1, 64),
}


@settings(deadline=None, derandomize=True)
@given(layers=st.integers(3, 40), depth=st.integers(2, 4), **PROGRAMS)
def test_extension_is_the_timeline_of_the_deep_model_event_by_event(layers, depth, **program):
    layers = max(layers, depth)
    extended = extend(training(depth, **program), training(depth + 1, **program), layers - depth)
    whole = training(layers, **program)
    assert extended is not None
    assert extended.live_bytes == whole.live_bytes
    assert extended.peak() == whole.peak() and extended.marks == whole.marks
    assert [extended.peak(step) for step in (1, 2)] == [whole.peak(step) for step in (1, 2)]
    assert Counter(extended.events) == Counter(whole.events)
    check_pairs(extended)


@settings(deadline=None, derandomize=True, max_examples=40)
@given(layers=st.integers(3, 40), **PROGRAMS)
def test_operators_of_one_name_are_told_apart_by_their_bytes(layers, **program):
    build = {**program, "name": lambda index: ""}
    extended = extend(training(2, **build), training(3, **build), layers - 2)
    assert extended is None or extended.live_bytes == training(layers, **build).live_bytes


BLOCK = [(BIG, 2 * BIG, 0), (3 * BIG, 4 * BIG, 5 * BIG)]


def test_the_peak_may_be_one_that_the_shallow_models_do_not_have():
    # A loss of 20 units against 8 for each layer at the end of the backward pass: deep models peak there.
    build = {"block": [(6 * BIG, 2 * BIG, 0)], "loops": [16 * BIG]}
    shallow, deep = training(2, **build), training(3, **build)
    assert shallow.peak().phase == "optimizer"
    extended = extend(shallow, deep, 30)
    assert extended.peak() == training(32, **build).peak()


def test_no_layer_more_is_the_shallow_model_and_one_more_the_deep_one():
    shallow, deep = training(2, BLOCK, [7]), training(3, BLOCK, [7])
    assert extend(shallow, deep, 0).events == shallow.events
    assert extend(shallow, deep, 1).live_bytes == deep.live_bytes


def test_layers_that_differ_are_not_extended():
    shallow = training(2, BLOCK, [])
    other = training(3, [*BLOCK[:1], (3 * BIG, 9 * BIG, 5 * BIG)], [])
    assert extend(shallow, other, 4) is None
    # The third layer is not like the first two: nothing is known of a fourth.
    third = [one for one in shallow.events for _ in range(1)]
    third[2:2] = [event(11 * BIG, "other layer", "weights", "other")]
    assert extend(shallow, Timeline(third), 4) is None
    assert extend(training(3, BLOCK, []), shallow, 4) is None


def test_a_large_storage_that_grows_with_the_layers_is_not_extended():
    # All parameters in one buffer: its size in the deep model is not known from events that repeat.
    shallow, deep = (training(layers, BLOCK, [], norms=BIG) for layers in (2, 3))
    assert extend(shallow, deep, 4) is None


def test_ends_before_births_are_no_timeline():
    shallow = Timeline([OUTPUT, event(-BIG, "a"), event(-BIG, "a")])
    deep = Timeline([OUTPUT, event(-BIG, "a"), event(-BIG, "a"), event(-BIG, "a")])
    assert extend(shallow, deep, 3) is None
