"""Demonstrations by the scripted expert, without hardware and faster than time, through the whole safety pipeline."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from featherweight.errors import ConfigError
from featherweight.robot.kit import SERVOS
from featherweight.robot.leaders.paced import PacedLeader
from featherweight.robot.recording.layout import robot_features, vector
from featherweight.robot.recording.recorder import EpisodeRecorder
from featherweight.robot.recording.writer import DemoWriter
from featherweight.robot.safety.controller import Controller
from featherweight.robot.safety.mode import Mode
from featherweight.robot.sim.cameras import Cameras
from featherweight.robot.sim.expert import RATE_HZ, pick_and_place
from featherweight.robot.sim.session import SCENE_NAMES, VirtualSession

FPS = 30
SCENE_KEY = "observation.environment_state"
"""Where the cube and the bin are; LeRobot's name for what is seen without pictures."""
TASK = "put the cube in the bin"
LONGEST_S = 20.0


def expert_writer(root: str | Path, cameras: Sequence[str] = (), size_px: tuple[int, int] = (240, 320)) -> DemoWriter:
    """Return the writer of a data set of the simulator: the arm, the scene and pictures."""
    features = robot_features({SCENE_KEY: vector(SCENE_NAMES)})
    return DemoWriter(root, FPS, "umirobot", features, dict.fromkeys(cameras, size_px))


def demonstrate(
    writer: DemoWriter,
    seeds: Sequence[int],
    on_episode: Callable[[int, bool], None] | None = None,
    cameras: Sequence[str] = (),
    task: str = TASK,
    zero_offset_deg: Sequence[float] = (0.0,) * SERVOS,
) -> int:
    """Let the expert put a cube into the bin once for each seed; only what succeeds is kept.

    Args:
        writer: of `expert_writer`, with the same cameras.
        seeds: of the layouts.
        on_episode: called with the seed and whether the cube is in the bin.
        cameras: names of cameras of the scene.
        task: what is done.
        zero_offset_deg: (6,) errors of assembly of the kit, which this expert knows.
    Returns:
        Episodes that were kept.
    Cost: about a third of a second of one core for each demonstration without pictures.
    """
    session = VirtualSession(zero_offset_deg=zero_offset_deg)
    height_px, width_px = writer.picture_size_px
    drawn = Cameras(session.world, cameras, width_px, height_px) if cameras else None
    kept = 0
    try:
        for seed in seeds:
            session.reset(seed)
            is_placed = run_expert(session, writer, drawn)
            if is_placed:
                writer.save(task)
                kept += 1
            else:
                writer.discard()
            if on_episode is not None:
                on_episode(seed, is_placed)
    finally:
        writer.discard()
        if drawn is not None:
            drawn.close()
    return kept


def run_expert(session: VirtualSession, writer: DemoWriter | None = None, cameras: Cameras | None = None) -> bool:
    """Run the expert in a fresh session and record it; return whether the cube lies in the bin at the end."""
    try:
        joints = pick_and_place(session.world.cube_m(), session.world.bin_m)
        targets = [tuple(map(float, target + np.array(session.zero_offset_deg))) for target in joints]
    except ConfigError:  # out of reach
        return False
    leader = PacedLeader(targets, RATE_HZ, session.clock)
    recorder = None
    if writer is not None:
        recorder = EpisodeRecorder(
            writer,
            session.robot,
            cameras.render if cameras is not None else None,
            lambda: {SCENE_KEY: session.scene()},
            session.clock,
        )

    def on_step(controller: Controller) -> bool:
        leader.play(controller.mode is Mode.ACTIVE)
        if recorder is not None:
            recorder.look(controller)
        return not leader.is_finished

    session.run(leader, LONGEST_S, on_step)
    session.robot.sleep(0.5)
    return session.world.is_placed()
