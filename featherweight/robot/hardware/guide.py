"""The assembly guide: a PDF of pages with pictures of this very assembly, and the texts that the site shows, too."""

import io
from dataclasses import dataclass
from typing import Any

from featherweight.robot.hardware.assembly import Assembly
from featherweight.robot.hardware.bill import PRICES_OF, bill, total_usd


@dataclass(frozen=True)
class Step:
    """A step of the assembly.

    Attributes:
        title: short.
        text: what to do.
        shows: names of the pieces that stand out in its picture; none for a page without one.
        bodies: how many bodies stand already, from the base on.
    """

    title: str
    text: str
    shows: frozenset[str] = frozenset()
    bodies: int = 9


SAFETY = (
    "The supply's switch is the stop: it lies where a hand finds it without looking, and it is off while you screw.",
    "Servos pinch: keep fingers out of the elbow, of the gripper and of the space around the turret while power is on.",
    "Servo power comes from its own supply of 5 V and at least 5 A; never from USB or from the board's 5 V pin.",
    "All grounds are joined: without that wire servos twitch. Plus of the board and plus of the supply are "
    "never joined.",
    "A stalled servo gets hot within half a minute: if one hums, cut the power and turn the joint free by hand.",
    "Screw or clamp the base to the table: the stretched arm tips a loose one over.",
    "Published firmware moves the arm to zero at once when power comes. Ours waits for the first command, then "
    "does the same: put the arm near zero before.",
    "Adults solder; glasses on for the one who cuts leads. A swollen or smoking supply is carried out, not examined.",
)
STEPS = (
    Step(
        "Set every servo to the middle",
        "Before any horn is screwed on: connect each servo alone, run `fw robot doctor --port auto`, and let it "
        "go to 0. "
        "A horn that sits wrong by a tooth costs 14 degrees; `zero_offset_deg` in the calibration mends what is left.",
    ),
    Step(
        "Base",
        "Servo 1 from above into the house, cable through the back, four M3 screws through its ears.",
        frozenset({"base", "servo_1"}),
        1,
    ),
    Step(
        "Turret",
        "Four M3 screws hold the disc on the horn of servo 1, at zero with the wall to the right. Servo 2 from "
        "the right through the wall, case to the back.",
        frozenset({"turret", "servo_2"}),
        2,
    ),
    Step(
        "Upper arm",
        "The plate on the horn of servo 2, upright at zero, ribs outside. Servo 3 from the left through its upper end.",
        frozenset({"upper_arm", "servo_3"}),
        3,
    ),
    Step(
        "Forearm bracket",
        "The cheek on the horn of servo 3, its wall to the front at zero. Servo 4 from the front, case upwards.",
        frozenset({"forearm_bracket", "servo_4"}),
        4,
    ),
    Step(
        "Forearm",
        "The flange on the horn of servo 4, the open side of the channel up at zero: a long screwdriver goes "
        "through the holes of the block. Servo 5 (micro) onto the tongue, cable through the channel.",
        frozenset({"forearm", "servo_5"}),
        5,
    ),
    Step(
        "Gripper",
        "Servo 6 from below under the deck, two screws. Turn it to -90 degrees. Racks and pinion in, fingers "
        "closed, then "
        "the lid with two M2 screws; rubber tape on the fingers. The palm on the horn of servo 5, straight at zero.",
        frozenset({"palm", "gripper_lid", "pinion", "finger_left", "finger_right", "servo_6"}),
        9,
    ),
    Step(
        "First move",
        "Wire as in the diagram, supply off. USB in: `fw robot flash --port auto` once, then `fw robot doctor "
        "--port auto`. "
        "Arm near zero, hands away, supply on: `fw robot doctor --port auto --move` moves each joint by 5 degrees.",
    ),
)


def assembly_pdf(assembly: Assembly) -> bytes:
    """Return the guide as PDF: safety, bill, then one page for each step with its picture.

    Raises:
        DeviceError: if no graphics work here.
    Cost: about five seconds.
    """
    from matplotlib.backends.backend_pdf import PdfPages
    from matplotlib.figure import Figure

    from featherweight.robot.hardware.pictures import draw, of_arm

    buffer = io.BytesIO()
    with PdfPages(buffer, metadata={"Title": "Assembly of the kit", "CreationDate": None}) as pdf:

        def page(title: str, body: str, picture: Any = None) -> None:
            figure = Figure(figsize=(8.27, 11.69))
            figure.text(0.08, 0.94, title, fontsize=20, weight="bold", va="top")
            figure.text(0.08, 0.89, body, fontsize=11, va="top", linespacing=1.6)
            if picture is not None:
                axes = figure.add_axes((0.06, 0.06, 0.88, 0.62))
                axes.imshow(picture)
                axes.axis("off")
            pdf.savefig(figure)

        page("Safety first", "\n\n".join(f"{i}.  {_folded(text, 84)}" for i, text in enumerate(SAFETY, start=1)))
        items = bill(printed_kg(assembly))
        low, high = total_usd(items)
        rows = "\n".join(f"{item.count:g} x  {item.name}: {item.used_for}" for item in items)
        page("What you need", f"{rows}\n\n{low:.0f} to {high:.0f} USD in all ({PRICES_OF}).")
        for number, step in enumerate(STEPS, start=1):
            picture = None
            if step.shows:
                azimuth_deg = -140.0 if number in (3, 4) else 125.0
                picture = draw(
                    of_arm(assembly, [0, 0, 0, 0, 0, -90], step.shows, step.bodies), 1000, 800, azimuth_deg, -20.0
                )
            page(f"{number}. {step.title}", _folded(step.text.replace("`", ""), 88), picture)
    return buffer.getvalue()


def printed_kg(assembly: Assembly) -> float:
    """Return the plastic of all printed parts."""
    from featherweight.robot.hardware.printed import printed_parts

    d = assembly.dimensions
    volume = sum(part.solid.volume() * part.count for part in printed_parts(assembly))
    return volume * d.fill * d.material_g_cm3 / 1e6


def _folded(text: str, width: int) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(text, width))
