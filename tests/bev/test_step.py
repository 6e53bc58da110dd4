import torch

from featherweight.bev.options import BEVConfig, LossWeights
from featherweight.bev.skeleton import BEVSkeleton
from featherweight.bev.step import forward, remember


def test_every_term_that_the_network_has_is_asked_for_and_the_past_learns_nothing():
    options = {"use_cycle": True, "memory_length": 1, "use_pitch_head": True}
    skeleton = BEVSkeleton(BEVConfig(data="nowhere", model=options))
    model, batch = skeleton.build_model(), next(skeleton.batches("train", micro_batch_size=1))
    output = forward(model, batch, LossWeights())
    assert set(output.loss_dict) == {"bce", "iou", "uncertainty", "cycle", "view", "relevance", "pitch"}
    memory = remember(model, batch)
    assert not memory.features.requires_grad and memory.features.shape[:2] == (1, 1) and model.training
    assert torch.isfinite(output.loss)
