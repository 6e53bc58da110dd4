"""Names of neuraloperator are understood in options and groups."""

import pytest
import torch
from tensor_steps import weight_of

from featherweight.errors import ConfigError
from featherweight.optim import TensorGaLoreAdamW, TensorGRaD


def test_names_of_neuraloperator_are_understood():
    rest, weight = weight_of((5,), torch.float32), weight_of((8, 8, 6, 4), torch.complex64)
    optimizer = TensorGaLoreAdamW(
        [rest], lr=1e-3, galore_params=[weight], galore_rank=0.25, galore_update_proj_gap=50, galore_scale=2.0,
        activation_checkpoint=False, warm_restart=True,
    )  # fmt: skip
    group = optimizer.param_groups[1]
    assert (group["rank"], group["update_proj_gap"], group["scale"]) == (0.25, 50, 2.0)
    assert optimizer.layouts[weight].plan.kind == "tucker_channels" and optimizer.layouts[rest].rank is None
    grad = TensorGRaD(
        [{"params": [weight], "rank": 0.2, "lambda_sparse": 0.5, "sparse_type": "randk", "tensorgrad": True}]
    )
    assert grad.param_groups[0]["sparse_weight"] == 0.5 and grad.param_groups[0]["sparse_select"] == "randk"
    with pytest.raises(ConfigError, match="galore_rnk=0.5 is not allowed"):
        TensorGaLoreAdamW([weight], galore_rnk=0.5)
