import numpy as np
import pytest
import torch

from featherweight.bev.options import BEVConfig
from featherweight.bev.step import forward
from featherweight.bev.task import BEVTask
from featherweight.errors import ConfigError


@pytest.fixture(scope="module")
def task(world, cache) -> BEVTask:
    return BEVTask(BEVConfig(data=str(world)), seed=0)


def test_the_split_parts_the_drives(task):
    assert len(task.sequences["train"]) == 8 and task.sequences["val"] == ["scene-0757", "scene-0796"]
    assert len(task.samples["train"]) == 32 and task.model_config.trained_sequences == task.sequences["train"]
    assert task.protocol() == "pon14/exact/0.5m/1cam/fov+lidar/thr0.5/pooled/split=pon"


def test_a_memory_is_judged_on_more_cells_and_its_line_says_so(world, cache):
    # Mutation: two masks under one line, so that scores of other cells are compared.
    model = {"memory_length": 2}
    judged, plain = (
        BEVTask(BEVConfig(data=str(world), model=model, supervise_memory=is_said), seed=0) for is_said in (True, False)
    )
    assert "/fov+lidar+past/" in judged.protocol() and "/fov+lidar/" in plain.protocol()
    wide, narrow = (sum(int(b["seen"].sum()) for b, _ in one.held_out_share(4)) for one in (judged, plain))
    assert wide > narrow


def test_augmentation_follows_from_the_seed_and_the_place(task):
    one, same = (task.batches("train", micro_batch_size=2, seed=5) for _ in range(2))
    first = [next(one) for _ in range(3)]
    assert all(torch.equal(a["pixels"], next(same)["pixels"]) for a in first)
    later = next(task.batches("train", micro_batch_size=2, seed=5, start=2))
    assert torch.equal(later["pixels"], first[2]["pixels"]) and torch.equal(later["labels"], first[2]["labels"])


def test_held_out_frames_come_once_and_unchanged(task):
    frames = [batch["pixels"] for batch in task.batches("held_out", micro_batch_size=3, seed=0)]
    assert sum(map(len, frames)) == 8
    assert np.array_equal(frames[0][0].numpy(), task.samples["val"][0].pixels)


def test_labels_of_another_mode_are_refused_for_a_trained_network(run, world):
    with pytest.raises(ConfigError, match="label_mode='pon'"):
        BEVTask(BEVConfig(data=str(world), checkpoint=str(run.folder / "model"), label_mode="pon"), seed=0)


def test_a_part_without_drives_is_refused(tmp_path, cache):
    from featherweight.bev.synthetic.rig import WorldConfig
    from featherweight.bev.synthetic.world import write_world

    folder = write_world(tmp_path / "one", WorldConfig(scenes=1, frames=2, image_width=64, image_height=36))
    with pytest.raises(ConfigError, match="no drive of the val part"):
        BEVTask(BEVConfig(data=str(folder)), seed=0)


@pytest.mark.slow
def test_four_frames_are_learnt_by_heart(world, cache):
    """Two minutes of processor time: every class with 40 seen cells or more reaches an IoU of 0.9."""
    from featherweight.bev.metrics import BEVConfusion

    task = BEVTask(BEVConfig(data=str(world), flip=0, color_jitter=0), seed=0)
    model = task.build_model()
    batch = task._batch("train", [0, 9, 18, 27], None)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    for step in range(260):
        optimizer.param_groups[0]["lr"] = 2e-3 * min(1, (step + 1) / 20) * (1 - step / 300)
        optimizer.zero_grad()
        task.loss(model, batch)[0].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 4.0)
        optimizer.step()
    scores = BEVConfusion(task.source.classes.names, task.model_config.bev_grid)
    model.eval()
    with torch.no_grad():
        scores.update(forward(model, batch, task.config.loss).logits, batch["labels"], batch["seen"])
    cells = (batch["labels"] & batch["seen"][:, None]).sum((0, 2, 3))
    large = [name for name, count in zip(scores.names, cells.tolist(), strict=True) if count >= 40]
    assert len(large) >= 4
    assert min(scores.iou()[name] for name in large) >= 0.9, scores.iou()
