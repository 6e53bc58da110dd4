"""Whose turn it is."""

import pytest

from featherweight.robot.classroom.turns import Turns


@pytest.fixture
def turns(clock):
    return Turns(60.0, clock)


def test_who_asks_first_drives_and_a_turn_has_no_end_while_nobody_waits(turns, clock):
    turns.ask("alice")
    clock.now_s = 1000.0
    assert turns.driver == "alice" and turns.place("alice") == 0 and turns.place("bob") is None


def test_a_turn_ends_a_slice_after_somebody_begins_to_wait_and_goes_round(turns, clock):
    turns.ask("alice")
    clock.now_s = 1000.0
    turns.ask("bob")
    turns.ask("carol")
    assert turns.left_s == 60 and turns.place("carol") == 2
    clock.now_s = 1059.0
    assert turns.driver == "alice" and turns.left_s == 1
    clock.now_s = 1061.0
    assert turns.driver == "bob" and turns.left_s == 59 and turns.place("alice") == 2
    clock.now_s = 1181.0  # bob's and carol's turns are over
    assert turns.driver == "alice"


def test_who_leaves_gives_the_turn_to_the_next_with_a_whole_slice(turns, clock):
    for name in ("alice", "bob", "carol"):
        turns.ask(name)
    clock.now_s = 50.0
    turns.leave("alice")
    assert turns.driver == "bob" and turns.left_s == 60
    turns.leave("carol")
    turns.leave("nobody")
    turns.leave("bob")
    assert turns.driver is None and turns.left_s == 0


def test_to_ask_again_keeps_the_place(turns):
    for name in ("alice", "bob", "bob"):
        turns.ask(name)
    assert turns.place("bob") == 1
