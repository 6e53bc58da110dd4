"""The MLP of behaviour cloning."""

import torch

from featherweight.robot.learning.bc import BCConfig, BCPolicy


def test_predictions_are_degrees_and_targets_are_scaled_alike():
    torch.manual_seed(0)
    policy = BCPolicy(BCConfig(chunk=4, hidden=8, layers=1))
    generator = torch.Generator().manual_seed(1)
    policy.fit_scales(
        {
            "features": torch.randn(50, 20, generator=generator),
            "targets": 3 + 7 * torch.randn(50, 4, 6, generator=generator),
        }
    )
    x = torch.randn(5, 20)
    degrees = policy.predict({"features": x})
    assert degrees.shape == (5, 4, 6)
    torch.testing.assert_close(policy.normal_targets(degrees), policy.normal_chunks(x))
