import torch

from featherweight.bev.options import BEVConfig
from featherweight.bev.skeleton import BEVSkeleton
from featherweight.bev.task import BEVTask


def test_the_shapes_are_those_of_the_task(world, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    config = BEVConfig(data=str(world), model={"memory_length": 2, "use_cycle": True})
    real = next(BEVTask(config, seed=0).batches("train", micro_batch_size=2, seed=0))
    skeleton = BEVTask.skeleton(config, seed=0)
    assert isinstance(skeleton, BEVSkeleton)
    by_shape = next(skeleton.batches("train", micro_batch_size=2))
    assert {name: (value.shape, value.dtype) for name, value in real.items()} == {
        name: (value.shape, value.dtype) for name, value in by_shape.items()
    }


def test_no_data_are_read_and_a_step_runs():
    skeleton = BEVSkeleton(BEVConfig(data="nowhere"))
    loss, count = skeleton.loss(skeleton.build_model(), next(skeleton.batches("train", micro_batch_size=1)))
    assert count == 1 and torch.isfinite(loss)
