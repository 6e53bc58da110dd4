"""What processes have that others lack, in a sentence."""

from collections.abc import Sequence


def of_gradients(everyone: Sequence[Sequence[str]]) -> str:
    """Return in a sentence who has a gradient that others lack.

    Args:
        everyone: names of the parameters with a gradient, in order, by rank.
    Example:
        >>> of_gradients([["a"], ["a", "b"]]).partition(";")[0]
        "distributed: 'b' has a gradient on rank 1 and none on rank 0"
    """
    first = everyone[0]
    for number, names in enumerate(everyone):
        extra = [name for name in names if name not in first] or [name for name in first if name not in names]
        if extra:
            has, lacks = (number, 0) if extra[0] in names else (0, number)
            return (
                f"distributed: '{extra[0]}' has a gradient on rank {has} and none on rank {lacks}; expected gradients "
                "of the same parameters on all processes. A layer that only some of them use (a condition, an expert) "
                "must take part everywhere: add its output times 0 to the loss."
            )
    return (
        f"distributed: gradients come in another order on rank 0 ({', '.join(first[:3])}, ...) than elsewhere; "
        "expected one order. Build the same model, and call its layers in the same order, in all processes."
    )
