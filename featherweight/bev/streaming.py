"""Frame after frame of one drive: the memory, its motion and its ends are kept here."""

import warnings
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from featherweight.bev.geometry import ground_motion, in_view
from featherweight.bev.image_processing_focusbev import FocusBEVImageProcessor
from featherweight.bev.model.modeling_focusbev import BEVSegmenterOutput, FocusBEVForSegmentation, Memory
from featherweight.bev.samples import LARGEST_GAP_S, LARGEST_JUMP_M

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class _Kept:
    features: Tensor
    mask: Tensor
    camera_to_world: np.ndarray
    timestamp: float


@dataclass(frozen=True)
class StepInputs:
    """What a network gets for one picture of a drive, as an exported file takes it."""

    pixel_values: Tensor
    """(1, 3, height, width)."""
    intrinsics: Tensor
    """(1, 3, 3) of those pixels."""
    camera_to_ego: Tensor
    """(1, 4, 4)."""
    memory: Memory | None
    """None for networks without one; entries that do not exist are not valid."""
    camera_to_world: np.ndarray | None
    """4 x 4, if the pose is known."""
    timestamp: float
    """Seconds."""


class StreamingSegmenter:
    """Segments a drive picture by picture; each step costs one picture, whatever the memory holds.

    Args:
        model: in evaluation mode or not; it is left as it is.
        intrinsics: 3 x 3 K of the pictures that come.
        camera_to_ego: 4 x 4 pose of the camera on its carrier; None: level, at the model's height.
        processor: of the pictures; None takes one of the model's size.

    Example:
        >>> from PIL import Image
        >>> from featherweight.bev.model.configuration_focusbev import FocusBEVConfig
        >>> model = FocusBEVForSegmentation(FocusBEVConfig.preset("tiny", memory_length=1))
        >>> stream = StreamingSegmenter(model, np.array([[177.0, 0, 112], [0, 177, 64], [0, 0, 1]]))
        >>> picture = Image.new("RGB", (224, 128))
        >>> stream.step(picture, pose=np.eye(4), timestamp=0.0).logits.shape
        torch.Size([1, 14, 98, 100])
        >>> len(stream)
        1
    """

    def __init__(
        self,
        model: FocusBEVForSegmentation,
        intrinsics: np.ndarray,
        camera_to_ego: np.ndarray | None = None,
        processor: FocusBEVImageProcessor | None = None,
    ) -> None:
        self.model, self.intrinsics = model, np.asarray(intrinsics, dtype=np.float64)
        self.camera_to_ego = camera_to_ego if camera_to_ego is not None else level_camera(model.config.camera_height)
        self.processor = processor or FocusBEVImageProcessor(model.config.image_size)
        self._memory: deque[_Kept] = deque(maxlen=max(1, model.config.memory_length))
        self._sequence: str | None = None

    def __len__(self) -> int:
        """Frames in the memory."""
        return len(self._memory)

    def reset(self) -> None:
        """Forget everything: the next step is the first of a drive."""
        self._memory.clear()
        self._sequence = None

    @torch.inference_mode()
    def step(
        self,
        frame: "Image",
        pose: np.ndarray | None = None,
        timestamp: float | None = None,
        sequence_id: str | None = None,
    ) -> BEVSegmenterOutput:
        """Segment the next picture.

        Args:
            frame: of the size that the intrinsics belong to.
            pose: 4 x 4 of the carrier, ego to world; None: this picture alone, and nothing is remembered.
            timestamp: seconds; None: half a second after the last.
            sequence_id: of the drive; another one than before begins anew.
        Returns:
            The output of the model for this picture. The memory is forgotten where time does not go on by at most 2 s
            or the camera jumps by more than 20 m.
        """
        now = self.inputs(frame, pose, timestamp, sequence_id)
        was_training = self.model.training
        self.model.eval()
        try:
            output: BEVSegmenterOutput = self.model(
                now.pixel_values, now.intrinsics, camera_to_ego=now.camera_to_ego, memory=now.memory
            )
        finally:
            self.model.train(was_training)
        if now.camera_to_world is not None and self.model.config.memory_length:
            assert output.bev_features is not None
            intrinsics = now.intrinsics[0].double().cpu().numpy()
            covered = in_view(self.model.config.feature_grid, intrinsics, self.processor.image_size[1])
            mask = torch.from_numpy(covered).to(output.bev_features.device)
            kept = output.bev_features[0].clone()
            self._memory.append(_Kept(kept, mask, now.camera_to_world, now.timestamp))
        return output

    def inputs(
        self,
        frame: "Image",
        pose: np.ndarray | None = None,
        timestamp: float | None = None,
        sequence_id: str | None = None,
    ) -> StepInputs:
        """Return what the network (or its exported file) gets for the next picture; see `step`.

        Where the drive does not go on, the memory is forgotten here. Nothing is remembered.
        """
        inputs = self.processor(frame, self.intrinsics)
        device = next(self.model.parameters()).device
        to_world = None if pose is None else np.asarray(pose, dtype=np.float64) @ self.camera_to_ego
        now = timestamp if timestamp is not None else (self._memory[-1].timestamp + 0.5 if self._memory else 0.0)
        if to_world is None or sequence_id != self._sequence or not self._goes_on(to_world, now):
            self._memory.clear()
        self._sequence = sequence_id
        return StepInputs(
            pixel_values=inputs["pixel_values"].to(device),
            intrinsics=inputs["intrinsics"].to(device),
            camera_to_ego=torch.from_numpy(self.camera_to_ego).float()[None].to(device),
            memory=self._as_memory(to_world, now) if self.model.config.memory_length else None,
            camera_to_world=to_world,
            timestamp=now,
        )

    def _goes_on(self, to_world: np.ndarray, now: float) -> bool:
        if not self._memory:
            return True
        last = self._memory[-1]
        jump, gap = float(np.linalg.norm(to_world[:3, 3] - last.camera_to_world[:3, 3])), now - last.timestamp
        if 0 < gap <= LARGEST_GAP_S and jump <= LARGEST_JUMP_M:
            return True
        warnings.warn(
            f"StreamingSegmenter: {gap:g} s after the last picture the camera stands {jump:.3g} m away; a memory goes "
            f"on over 0 to {LARGEST_GAP_S:g} s and {LARGEST_JUMP_M:g} m, so that it is forgotten. Check the units of "
            "poses (m) and times (s), or give another sequence_id where another drive begins.",
            stacklevel=4,
        )
        return False

    def _as_memory(self, to_world: np.ndarray | None, now: float) -> Memory:
        if to_world is None or not self._memory:
            device = next(self.model.parameters()).device
            return self.model.empty_memory(1, device)
        length, plane = self.model.config.memory_length, self.model.config.bev_grid.plane
        kept = list(reversed(self._memory))
        kept += [kept[0]] * (length - len(kept))
        device = kept[0].features.device
        motion = np.stack([ground_motion(one.camera_to_world, to_world, plane) for one in kept])
        return Memory(
            features=torch.stack([one.features for one in kept])[None],
            mask=torch.stack([one.mask for one in kept])[None],
            motion=torch.from_numpy(motion).float()[None].to(device),
            age=torch.tensor([[now - one.timestamp for one in kept]], device=device, dtype=torch.float32),
            valid=torch.tensor([[number < len(self._memory) for number in range(length)]], device=device),
        )


def level_camera(height: float) -> np.ndarray:
    """Return the pose of a camera that looks straight ahead, `height` m above the ground."""
    matrix = np.eye(4)
    matrix[:3, :3] = [[0, 0, 1], [-1, 0, 0], [0, -1, 0]]
    matrix[2, 3] = height
    return matrix
