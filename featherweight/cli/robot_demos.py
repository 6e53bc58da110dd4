"""`fw robot record|replay|dataset|train|eval`: demonstrations, and policies that learn from them."""

from pathlib import Path
from typing import Annotated, Any

import typer

from featherweight.cli.robot_devices import CameraWishes, make_follower
from featherweight.cli.robot_episodes import Length, record_by_hand, record_in_room
from featherweight.cli.robot_options import (
    CameraFormat,
    CameraRate,
    Cameras,
    CameraSize,
    ClassFolder,
    FollowerName,
    LeaderName,
    MemberName,
    Offsets,
    Port,
    RelayAddress,
    RobotName,
    read_offsets,
    read_size,
)
from featherweight.cli.screen import AsJson, Overrides, RecipeFile, Resume, print_json
from featherweight.cli.train import train as run_train
from featherweight.errors import ConfigError

Demos = Annotated[Path, typer.Argument(metavar="DEMOS", help="Folder of a LeRobot v3.0 data set.", show_default=False)]


def record(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the data set; episodes are added to one.")],
    task: Annotated[str, typer.Option(help="What is done, one sentence.")] = "put the cube in the bin",
    leader: LeaderName = "keyboard",
    follower: FollowerName = "sim",
    port: Port = "auto",
    episodes: Annotated[int, typer.Option(min=1, help="How many.")] = 1,
    seconds: Annotated[float, typer.Option(min=0.5, max=3600, help="Of each, from when the arm follows.")] = 20.0,
    fps: Annotated[int, typer.Option(min=1, max=120, help="Frames a second.")] = 30,
    camera: Cameras = None,
    size: CameraSize = None,
    rate: CameraRate = None,
    input_format: CameraFormat = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the first layout of the expert; each episode has another.")] = 0,
    offsets: Offsets = "0,0,0,0,0",
    room: Annotated[
        str | None, typer.Option(help="Record while driving a robot of this room.", show_default=False)
    ] = None,
    address: RelayAddress = "wss://127.0.0.1:7443",
    class_folder: ClassFolder = Path("class"),
    name: MemberName = None,
    robot_name: RobotName = "arm1",
    as_json: AsJson = False,
) -> None:
    """Record demonstrations as a LeRobot v3.0 data set; a kill at any moment loses the present episode at most.

    The scripted expert needs no hardware and is much faster than time. Ctrl-C forgets the present episode and ends.

    [bold]Examples[/bold]

    fw robot record --leader expert --episodes 50 --out demos

    fw robot record --leader pots --follower umirobot --port auto --camera /dev/video0 --task "wave" --out waves

    fw robot record --room lab1 --class members/alice --relay wss://lab.example.org:7443 --task "wave" --out waves
    """
    length = Length(episodes, seconds, fps, task)
    if room is not None:
        result = record_in_room(room, address, class_folder, name, robot_name, leader, port, out, camera or [], length)
    elif leader == "expert":
        result = _record_expert(out, range(seed, seed + episodes), camera or [], task, fps, size, offsets)
    else:
        robot = make_follower(follower, port, CameraWishes(camera, size, rate, input_format))
        with robot:
            result = record_by_hand(robot, leader, port, out, length)
    if as_json:
        print_json(result)
    else:
        print(f"{result['saved']} of {result['tried']} episodes saved in {out}; it holds {result['total']}.")


def _record_expert(
    out: Path, seeds: range, cameras: list[str], task: str, fps: int, size: str | None, offsets: str
) -> dict[str, Any]:
    from rich.progress import Progress

    from featherweight.robot.recording.demonstrations import FPS, demonstrate, expert_writer

    if fps != FPS:
        raise ConfigError(f"fw robot record: fps={fps} is not the expert's; expected {FPS}. Leave --fps out.")
    width_px, height_px = read_size("fw robot record", size) or (320, 240)
    # The simulator draws no larger pictures.
    if width_px > 1280 or height_px > 960:
        raise ConfigError(f"fw robot record: size={size} cannot be drawn; expected at most 1280x960. Write 320x240.")
    kit = read_offsets("fw robot record", offsets)
    writer = expert_writer(out, cameras, (height_px, width_px))
    with Progress(transient=True) as bar:
        shown = bar.add_task("recording", total=len(seeds))
        saved = demonstrate(writer, seeds, lambda *_: bar.advance(shown), cameras, task, kit)
    return {"saved": saved, "tried": len(seeds), "total": len(writer.rows)}


def replay(
    demos: Demos,
    episode: Annotated[int, typer.Argument(min=0, help="Its number, from 0 on.")] = 0,
    follower: FollowerName = "sim",
    port: Port = "auto",
    speed: Annotated[float, typer.Option(min=0.1, max=2, help="1 is that of the recording.")] = 1.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="On an emulated kit, faster than time.")] = False,
    as_json: AsJson = False,
) -> None:
    """Let an arm repeat a recorded episode: slowly to its first frame, then at its rate, within all limits."""
    from featherweight.robot.recording.demo_dataset import DemoDataset
    from featherweight.robot.recording.replay import replay as run_replay
    from featherweight.robot.virtual_robot import VirtualRobot

    data = DemoDataset(demos)
    if dry_run:
        arm = VirtualRobot()
        arm.sleep(0.1)
        result = run_replay(data, episode, arm, speed, clock=lambda: arm.now_s, sleep=arm.sleep)
    else:
        data.episode(episode)  # said before the arm is touched
        robot = make_follower(follower, port)
        with robot:
            result = run_replay(data, episode, robot, speed)
    if as_json:
        print_json(vars(result))
    else:
        print(
            f"{result.frames} frames in {result.duration_s:.1f} s, ended {result.mode}, {result.end_error_deg:.0f} "
            f"degrees from the recording (at most {result.largest_error_deg:.0f} on the way)"
        )


dataset_app = typer.Typer(no_args_is_help=True, help="Look at data sets, check and repair them.")


@dataset_app.command("info")
def dataset_info(demos: Demos, as_json: AsJson = False) -> None:
    """Tell what a data set holds."""
    from featherweight.robot.recording.check import describe

    told = describe(demos)
    if as_json:
        print_json(told)
        return
    for name, value in told.items():
        print(f"{name}: {value}")


@dataset_app.command("check")
def dataset_check(demos: Demos, as_json: AsJson = False) -> None:
    """Check every file of a data set; the exit code is 1 if something is wrong."""
    from featherweight.robot.recording.check import check

    _tell(check(demos), as_json)


@dataset_app.command("repair")
def dataset_repair(demos: Demos, as_json: AsJson = False) -> None:
    """Keep the episodes before the first damaged one; what is taken out goes to a folder beside the set."""
    from featherweight.robot.recording.check import repair

    _tell(repair(demos), as_json)


def _tell(result: Any, as_json: bool) -> None:
    if as_json:
        print_json(vars(result))
    else:
        for problem in result.problems:
            print(problem)
        print(f"{result.whole} of {result.episodes} episodes are whole, {result.frames} frames.")
    if result.problems:
        raise typer.Exit(1)


def train(
    recipe: RecipeFile,
    changes: Overrides = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Default: runs/<name>-<time>.", show_default=False)
    ] = None,
    resume: Resume = False,
    as_json: AsJson = False,
) -> None:
    """Train a policy on demonstrations, as `fw train` does.

    [bold]Example[/bold]

    fw robot train examples/recipes/robot_bc.yaml task.data=demos --out runs/robot
    """
    run_train(recipe, changes, out, resume, as_json=as_json)


def evaluate(
    run: Annotated[
        Path | None, typer.Argument(metavar="[RUN]", help="Folder of a run; none: the expert.", show_default=False)
    ] = None,
    scene: Annotated[str, typer.Option(help="challenge: one cube, one bin.")] = "challenge",
    runs: Annotated[int, typer.Option(min=1, help="Layouts, none of them among those of the demonstrations.")] = 50,
    seed: Annotated[int | None, typer.Option(min=0, help="Of the first layout.", show_default=False)] = None,
    offsets: Offsets = "0,0,0,0,0",
    as_json: AsJson = False,
) -> None:
    """Let a policy put cubes into the bin in simulation, through the safety pipeline, and count."""
    from featherweight.robot.learning.options import policy_folder

    if scene != "challenge":
        raise ConfigError(f"fw robot eval: scene={scene} has no cube; expected challenge. Leave --scene out.")
    if run is not None:
        policy_folder(run)
    from rich.progress import Progress

    from featherweight.robot.learning.evaluation import FIRST_UNSEEN_SEED
    from featherweight.robot.learning.evaluation import evaluate as run_evaluation
    from featherweight.robot.learning.policy import load_policy

    policy, kit = None if run is None else load_policy(run), read_offsets("fw robot eval", offsets)
    first = FIRST_UNSEEN_SEED if seed is None else seed
    with Progress(transient=True) as bar:
        shown = bar.add_task("evaluating", total=runs)
        result = run_evaluation(policy, range(first, first + runs), lambda *_: bar.advance(shown), kit)
    low, high = result.interval
    failed = [seed for seed, is_placed in zip(result.seeds, result.placed, strict=True) if not is_placed]
    mean_s = sum(result.times_s) / len(result.times_s) if result.times_s else None
    told = {
        "placed": result.successes,
        "runs": runs,
        "interval_95": [low, high],
        "mean_time_s": mean_s,
        "failed": failed,
    }
    if as_json:
        print_json(told)
    else:
        seconds = "" if mean_s is None else f", {mean_s:.1f} s each"
        print(
            f"{result.successes} of {runs} cubes in the bin (95 %: {low:.2f} to {high:.2f}){seconds}; failed: {failed}"
        )
