"""What a trained network of `scripts/bench bev` does beyond its score.

    scripts/bench bev_trained [--run upright-0] [--parts camera,memory]
    scripts/bench bev_trained --run shaken_head-0 --parts pitch

camera: a robot's camera 0.35 m above the ground with f = 700 px (of 1600), which no training picture had: scores with
its own K and height, and with wrong ones.
memory: cells out of the present view that one of three past frames saw. Features of the trained network stay as they
are; decoder and fusion train for 200 steps of 6 frames on its 8 drives, with and without past frames; both are taught
the cells that any of the frames saw.
pitch: what the head of a network estimates on held-out pictures that are tilted by half a degree (normally distributed)
and where their calibration is right, against the truth; rows of results/bev_pitch.csv. Then scores on pictures that are
tilted by a pitch and by a roll of half of its size, with the estimate and where the calibration tells the true pitch.
"""

import argparse
import copy
import math
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_bev import DRIVES, recipe, world
from measurement import write_rows
from torch import Tensor

from featherweight.bev.augmentation import tilted
from featherweight.bev.data.classes import find_classes
from featherweight.bev.data.nuscenes import NuScenesIndex
from featherweight.bev.geometry import tilt
from featherweight.bev.image_processing_focusbev import normalized, read_image
from featherweight.bev.labels import make_labels
from featherweight.bev.losses import segmentation_losses
from featherweight.bev.metrics import BEVConfusion
from featherweight.bev.model.modeling_focusbev import FocusBEVForSegmentation, Memory
from featherweight.bev.options import BEVConfig
from featherweight.bev.prediction import load
from featherweight.bev.samples import Sample, batch_of, memory_of, seen_with_past
from featherweight.bev.streaming import StreamingSegmenter
from featherweight.bev.synthetic.rig import WorldConfig, intrinsics_of
from featherweight.bev.synthetic.world import write_world
from featherweight.bev.task import BEVTask

SHOWN = ("drivable_area", "ped_crossing", "walkway", "carpark", "car", "truck")
LENGTH, STEPS, BATCH = 3, 200, 6
TILT_DEG, EVERY = 0.5, 6


def scores_of(part: str, case: str, run: str, scores: BEVConfusion, more: dict[str, Any]) -> dict[str, Any]:
    """Return a row of the CSV."""
    iou = scores.iou()
    return {
        "part": part,
        "case": case,
        "run": run,
        "frames": scores.frames,
        **{f"iou_{name}": round(iou[name], 4) if name in iou else "" for name in SHOWN},
        **more,
    }


def camera(folder: Path, run: str) -> None:
    """Judge with right and wrong calibrations of a camera that nobody trained with."""
    model, processor = load(folder / "runs" / run)
    options = WorldConfig(
        scenes=6, frames=6, seed=77, image_width=640, image_height=360, camera_height=0.35, focal_length=700
    )
    target = folder / "robot-world"
    if not target.exists():
        write_world(target, options)
    with tempfile.TemporaryDirectory() as cache:
        index = NuScenesIndex(target, cache=Path(cache))
    own, pose = intrinsics_of(options), index.frames[0].camera_to_ego
    tall = pose.copy()
    tall[2, 3] = WorldConfig().camera_height
    car = intrinsics_of(WorldConfig(image_width=640, image_height=360))
    cases = {
        "its own K and height": (own, pose),
        "K of a picture of 480 x 270": (np.diag([0.75, 0.75, 1]) @ own, pose),
        "K of the training camera": (car, pose),
        "height of the training camera": (own, tall),
    }
    for case, (intrinsics, camera_to_ego) in cases.items():
        scores = BEVConfusion(index.classes.names, model.config.bev_grid)
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            stream = StreamingSegmenter(model, intrinsics, camera_to_ego, processor)
            for frame in list(index.frames)[::2]:
                masks, seen = index.classes.split_bits(make_labels(index, frame, model.config.bev_grid))
                logits = stream.step(read_image(frame.image)).logits
                assert logits is not None
                scores.update(logits, torch.from_numpy(masks)[None], torch.from_numpy(seen)[None])
        row = scores_of("camera", case, run, scores, {"warned": bool(warned), "seconds": ""})
        print(row)
        write_rows("bev_trained", [row])


class Drives:
    """Ground features of every frame of a part of the split, and what memory and loss need beside them."""

    def __init__(self, task: BEVTask, part: str, model: FocusBEVForSegmentation, every: int) -> None:
        self.samples, self.grid = task.samples[part], model.config.bev_grid
        self.numbers = [n for n in range(len(self.samples)) if len(self.samples.past(n, LENGTH)) == LENGTH][::every]
        needed = sorted({m for n in self.numbers for m in (n, *self.samples.past(n, LENGTH))})
        self.features: dict[int, Tensor] = {}
        with torch.inference_mode():
            for number in needed:
                batch = batch_of([self.samples[number]])
                self.features[number] = model(
                    normalized(batch["pixels"]),
                    batch["intrinsics"],
                    camera_to_ego=batch["camera_to_ego"],
                    features_only=True,
                ).bev_features[0]

    def batch(self, chosen: list[int]) -> tuple[Tensor, Memory, Tensor, Tensor, Tensor]:
        """Return features, memory, labels, cells seen now and cells seen by any frame."""
        now = [self.samples[number] for number in chosen]
        pasts = [self.samples.past(number, LENGTH) for number in chosen]
        past = [[self.samples[number] for number in numbers] for numbers in pasts]
        given = memory_of(now, past, LENGTH, self.grid)
        features = torch.stack([torch.stack([self.features[number] for number in numbers]) for numbers in pasts])
        memory = Memory(features.clone(), given["past_in_view"], given["motion"], given["age"], given["valid"])
        batch = batch_of(now)
        union = [seen_with_past(one, earlier, self.grid) for one, earlier in zip(now, past, strict=True)]
        present = torch.stack([self.features[number] for number in chosen]).clone()
        return present, memory, batch["labels"], batch["seen"], torch.from_numpy(np.stack(union))


def memory(folder: Path, run: str) -> None:
    """Train decoder and fusion with and without past frames and judge cells out of view that were seen before."""
    trained, _ = load(folder / "runs" / run)
    data = world(folder)
    task = BEVTask(BEVConfig.parse({"data": str(data), "limit_sequences": 8, "flip": 0, "color_jitter": 0}), seed=0)
    begun = time.process_time()
    train, judged = Drives(task, "train", trained, 1), Drives(task, "val", trained, 2)
    print(f"features of {len(train.features) + len(judged.features)} frames: {time.process_time() - begun:.0f} s")
    for case in ("single frame", f"memory of {LENGTH}"):
        begun = time.process_time()
        model = with_memory(trained)
        is_single = case == "single frame"
        parts = torch.nn.ModuleList([model.decoder, *([] if is_single else [model.fusion])])
        optimizer = torch.optim.AdamW(parts.parameters(), lr=1e-3, weight_decay=0.01)
        random = np.random.default_rng(0)
        for step in range(STEPS):
            chosen = random.choice(train.numbers, BATCH, replace=False).tolist()
            present, past, labels, _, union = train.batch(chosen)
            terms = segmentation_losses(answer(model, present, past, is_single), labels, union, model.config.priors)
            optimizer.param_groups[0]["lr"] = 1e-3 * min(1, (step + 1) / 20) * (1 - step / STEPS)
            optimizer.zero_grad()
            (terms["bce"] + terms["iou"]).backward()
            torch.nn.utils.clip_grad_norm_(parts.parameters(), 1.0)
            optimizer.step()
        before, inside = (BEVConfusion(task.source.classes.names, model.config.bev_grid) for _ in range(2))
        with torch.inference_mode():
            for first in range(0, len(judged.numbers), BATCH):
                present, past, labels, seen, union = judged.batch(judged.numbers[first : first + BATCH])
                logits = answer(model, present, past, is_single)
                before.update(logits, labels, union & ~seen)
                inside.update(logits, labels, seen)
        seconds = round(time.process_time() - begun)
        for name, scores in (("seen before", before), ("in view", inside)):
            row = scores_of("memory", f"{case}, cells {name}", run, scores, {"warned": "", "seconds": seconds})
            print(row)
            write_rows("bev_trained", [row])


def with_memory(trained: FocusBEVForSegmentation) -> FocusBEVForSegmentation:
    """Return the same network with a memory, which changes nothing yet."""
    config = copy.deepcopy(trained.config)
    config.memory_length = LENGTH
    torch.manual_seed(0)
    model = FocusBEVForSegmentation(config)
    model.load_state_dict(trained.state_dict(), strict=False)
    return model


def answer(model: FocusBEVForSegmentation, present: Tensor, past: Memory, is_single: bool) -> Tensor:
    """Return the logits of ground features."""
    assert model.fusion is not None
    if is_single:
        logits: Tensor = model.decoder(present)
        return logits
    fused, _ = model.fusion(present, past.features, past.mask, past.motion, past.age, past.valid)
    logits = model.decoder(fused)
    return logits


def pitch(folder: Path, run: str) -> None:
    """Compare the pitch that a network estimates with that by which pictures are tilted."""
    model, _ = load(folder / "runs" / run)
    if model.pitch_head is None:
        raise SystemExit(f"run={run} has no pitch head; expected one such as shaken_head-0.")
    data = world(folder, is_large=True)
    options = {key: value for key, value in recipe(data, "shaken_head", 0, 1)["task"].items() if key != "name"}
    samples = BEVTask(BEVConfig.parse(options), seed=0).samples["val"]
    angles = np.random.default_rng(0).normal(0, TILT_DEG, len(samples))[::EVERY]
    for case, tilts in (("tilted", angles), ("as they are", np.zeros_like(angles))):
        found = [
            estimated(model, tilted(samples[number], math.radians(angle), 0.0))
            for number, angle in zip(range(0, len(samples), EVERY), tilts, strict=True)
        ]
        away = np.array(found) - tilts
        row = {
            "case": case,
            "run": run,
            "frames": len(found),
            "true_std_deg": round(float(tilts.std()), 3),
            "rmse_deg": round(float(np.sqrt((away**2).mean())), 3),
            "correlation": round(float(np.corrcoef(found, tilts)[0, 1]), 3) if tilts.any() else "",
        }
        print(row)
        write_rows("bev_pitch", [row])
    tilts = np.random.default_rng(5).normal(0, 1, (len(samples), 2)) * np.radians((TILT_DEG, TILT_DEG / 2))
    for case in ("pitch estimated", "pitch told"):
        scores = BEVConfusion(find_classes(model.config.classes).names, model.config.bev_grid)
        for number in range(0, len(samples), 2):
            lean, roll = tilts[number]
            sample = tilted(samples[number], lean, roll)
            logits = judged(model, sample, lean if case == "pitch told" else None)
            scores.update(logits, torch.from_numpy(sample.labels)[None], torch.from_numpy(sample.seen)[None])
        row = scores_of("pitch", case, run, scores, {"warned": "", "seconds": ""})
        print(row)
        write_rows("bev_trained", [row])


@torch.inference_mode()
def judged(model: Any, sample: Sample, told: float | None) -> Tensor:
    """Return the logits of a picture, with the pitch that the network sees or with one that is told, radians."""
    pose, head = sample.camera_to_ego.copy(), model.pitch_head
    if told is not None:
        pose[:3, :3] = pose[:3, :3] @ tilt(told).T
        model.pitch_head = None
    try:
        logits: Tensor = model(
            normalized(torch.from_numpy(np.ascontiguousarray(sample.pixels)))[None],
            torch.from_numpy(sample.intrinsics)[None],
            camera_to_ego=torch.from_numpy(pose)[None],
        ).logits
    finally:
        model.pitch_head = head
    return logits


@torch.inference_mode()
def estimated(model: Any, sample: Sample) -> float:
    """Return the pitch that a network sees in a picture, degrees."""
    pixels = normalized(torch.from_numpy(np.ascontiguousarray(sample.pixels)))[None]
    return math.degrees(float(model.pitch_head(model.pyramid(model.backbone(pixels))[0])[0, 0]))


def main() -> None:
    """Run the parts asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", default="upright-0", help=f"of the {DRIVES} drives of scripts/bench bev")
    parser.add_argument("--parts", default="camera,memory")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir(), "featherweight-bev"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for part in arguments.parts.split(","):
        {"camera": camera, "memory": memory, "pitch": pitch}[part](arguments.folder, arguments.run)


if __name__ == "__main__":
    main()
