import torch

from featherweight.bev.model.decoder import GroundDecoder


def test_predictions_have_the_cells_of_the_labels_and_begin_near_the_priors():
    torch.manual_seed(0)
    decoder = GroundDecoder(16, (16, 32), 1, (21, 30), [0.4, 0.001])
    logits = decoder(torch.randn(2, 16, 11, 15))
    assert logits.shape == (2, 2, 21, 30)
    share = logits.sigmoid().mean((0, 2, 3))
    assert 0.2 < share[0] < 0.6 and share[1] < 0.01
