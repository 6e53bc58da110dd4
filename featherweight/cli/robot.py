"""`fw robot`: drive, simulate, emulate, build and teleoperate the arm, on one computer or over a network."""

import typer

from featherweight.cli.robot_camera import calibrate_camera, cameras
from featherweight.cli.robot_challenge import challenge
from featherweight.cli.robot_class import class_app
from featherweight.cli.robot_demos import dataset_app, evaluate, record, replay, train
from featherweight.cli.robot_kit import calibrate, doctor, ports
from featherweight.cli.robot_local import emulate, sim, teleop
from featherweight.cli.robot_parts import flash, kit_app
from featherweight.cli.robot_room import join, relay, serve
from featherweight.cli.robot_web import web

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode="rich", help="A desktop arm: simulate, teleoperate, record, learn."
)
for command in (
    sim,
    emulate,
    teleop,
    relay,
    serve,
    join,
    web,
    ports,
    cameras,
    doctor,
    calibrate,
    record,
    replay,
    train,
    challenge,
    flash,
):
    app.command()(command)
app.command("eval")(evaluate)
app.command("calibrate-camera")(calibrate_camera)
app.add_typer(class_app, name="class")
app.add_typer(kit_app, name="kit")
app.add_typer(dataset_app, name="dataset")
