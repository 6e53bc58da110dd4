"""What `fw chat` and `fw generate` print of an answer."""

from featherweight.cli.answer import visible


def test_what_a_model_says_cannot_steer_a_terminal():
    assert visible("a\x1b]0;title\x07b\x9bc\r\nd\te é🎉") == "a]0;titlebc\nd\te é🎉"
