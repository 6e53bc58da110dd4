"""What is compared before a kernel runs."""

import pytest
import torch

from featherweight.errors import ShapeError
from featherweight.kernels.launch_check import Argument, check_launch

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_fits_passes(dtype):
    codes, values = torch.zeros(4, 3, dtype=torch.uint8), torch.zeros(12, dtype=dtype)
    check_launch("k", CPU, Argument("codes", codes, 12, torch.uint8), Argument("values", values, 12, None))


@pytest.mark.parametrize(
    ("tensor", "numel", "dtype"),
    [
        (torch.zeros(11), 12, torch.float32),
        (torch.zeros(12), 12, torch.bfloat16),
        (torch.zeros(12, dtype=torch.float64), 12, None),  # wider than any kernel reads
        (torch.zeros(12, dtype=torch.int32), 12, None),
        (torch.zeros(24)[::2], 12, torch.float32),
        (torch.zeros(12, device="meta"), 12, torch.float32),
    ],
)
def test_another_size_type_order_or_place_is_named(tensor, numel, dtype):
    with pytest.raises(ShapeError, match=f"kernels.k: grad=.* expected {numel} contiguous elements"):
        check_launch("k", CPU, Argument("grad", tensor, numel, dtype))
