from contextlib import nullcontext

import numpy as np
import pytest
import torch

from featherweight.bev.data.frames import Frame
from featherweight.bev.grid import BEVGridConfig
from featherweight.bev.image_processing_focusbev import FocusBEVImageProcessor, read_image
from featherweight.bev.model.configuration_focusbev import FocusBEVConfig
from featherweight.bev.model.modeling_focusbev import FocusBEVForSegmentation, Memory
from featherweight.bev.samples import Samples, batch_of, memory_of
from featherweight.bev.streaming import StreamingSegmenter, level_camera


def model_with_memory(length: int = 2) -> FocusBEVForSegmentation:
    torch.manual_seed(0)
    model = FocusBEVForSegmentation(FocusBEVConfig.preset("tiny", memory_length=length)).eval()
    torch.nn.init.normal_(model.fusion.output.weight, std=0.3)
    return model


def stream_of(model, frame: Frame) -> StreamingSegmenter:
    return StreamingSegmenter(model, frame.intrinsics, frame.camera_to_ego)


def test_frame_after_frame_is_the_same_as_a_clip(index):
    model = model_with_memory()
    stream = stream_of(model, index.frames[0])
    for frame in index.frames[:3]:
        output = stream.step(read_image(frame.image), frame.ego_to_world, frame.timestamp)
    grid = BEVGridConfig(resolution=0.5, anchor="center")
    samples = Samples(index, index.frames, FocusBEVImageProcessor((128, 224)), grid, model.config.feature_grid, "exact")
    now, past = samples[2], [samples[1], samples[0]]
    batch = batch_of([now]) | memory_of([now], [past], 2, grid)
    normalize = FocusBEVImageProcessor((128, 224)).normalize
    with torch.no_grad():
        features = model(
            normalize(batch["past_pixels"][0]),
            batch["past_intrinsics"][0],
            camera_to_ego=batch["past_camera_to_ego"][0],
            features_only=True,
        ).bev_features
        memory = Memory(features[None], batch["past_in_view"], batch["motion"], batch["age"], batch["valid"])
        clip = model(
            normalize(batch["pixels"]), batch["intrinsics"], camera_to_ego=batch["camera_to_ego"], memory=memory
        )
    assert (output.memory_weights[:, 1:] > 0).any()
    torch.testing.assert_close(output.logits, clip.logits, rtol=1e-5, atol=1e-5)


def test_the_memory_ends_with_a_drive_a_jump_a_pause_or_time_that_goes_back(index):
    model = model_with_memory()
    stream = stream_of(model, index.frames[0])
    picture = read_image(index.frames[0].image)

    def moved(x):
        pose = np.eye(4)
        pose[0, 3] = x
        return pose

    for step in range(4):
        stream.step(picture, moved(step), step * 0.5, "a")
    assert len(stream) == 2
    for pose, time, name in [(moved(4), 2.0, "b"), (moved(50), 2.5, "b"), (moved(50), 9.0, "b"), (moved(50), 8.0, "b")]:
        same_drive = name == stream._sequence
        with pytest.warns(UserWarning, match="it is forgotten") if same_drive else nullcontext():
            stream.step(picture, pose, time, name)
        assert len(stream) == 1, (time, name)
    stream.step(picture)
    assert len(stream) == 0, "without a pose nothing is remembered"


def test_a_reset_makes_the_next_step_the_first(index):
    model = model_with_memory()
    stream, frame = stream_of(model, index.frames[0]), index.frames[0]
    first = stream.step(read_image(frame.image), frame.ego_to_world, frame.timestamp).logits
    stream.step(read_image(frame.image), index.frames[1].ego_to_world, index.frames[1].timestamp)
    stream.reset()
    again = stream.step(read_image(frame.image), frame.ego_to_world, frame.timestamp).logits
    assert torch.equal(first, again)


def test_a_level_camera_looks_ahead():
    pose = level_camera(1.2)
    np.testing.assert_array_equal(pose[:3, 2], [1, 0, 0])
    assert pose[2, 3] == 1.2 and np.linalg.det(pose[:3, :3]) == 1
