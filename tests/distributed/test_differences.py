"""A difference between ranks is a sentence."""

from featherweight.distributed.differences import of_gradients


def test_a_difference_names_the_parameter_and_who_has_it():
    assert "'b' has a gradient on rank 1 and none on rank 0" in of_gradients([["a"], ["a", "b"]])
    assert "'a' has a gradient on rank 0 and none on rank 2" in of_gradients([["a"], ["a"], []])
    assert "another order" in of_gradients([["a", "b"], ["b", "a"]])
