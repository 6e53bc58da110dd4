"""The tensors behind a weight of four bits: statistics that its packed codes mean nothing without.

bitsandbytes keeps them in an object on the parameter, where neither `named_buffers` nor a state dict sees them.
"""

from typing import Any

from torch import Tensor, nn


def statistics_of(parameter: Tensor) -> dict[str, Tensor]:
    """Return the statistics of a weight of four bits by name; empty for an ordinary parameter.

    Args:
        parameter: of any layer.
    """
    state: Any = getattr(parameter, "quant_state", None)
    if state is None:
        return {}
    found = {"absmax": state.absmax, "code": state.code}
    if state.nested:
        found |= {
            "offset": state.offset,
            "nested_absmax": state.state2.absmax,
            "nested_code": state.state2.code,
        }
    return found


def is_4bit(module: nn.Module) -> bool:
    """Tell whether the weight of a layer has four bits."""
    return getattr(getattr(module, "weight", None), "quant_state", None) is not None
