"""The wiring diagram: board, six servos on their own supply, six potentiometers, one ground; an SVG of our own."""

from featherweight.robot.kit import JOINTS

SERVO_PINS = (3, 5, 6, 9, 10, 11)
POT_PINS = ("A0", "A1", "A2", "A3", "A4", "A5")
INK, RED, BLACK, SIGNAL, BLUE, PAPER = "#1f2328", "#c0392b", "#1f2328", "#d98200", "#2f6fb0", "#ffffff"


def wiring_svg() -> str:
    """Return the diagram; wires of one color are one net."""
    parts: list[str] = []

    def wire(color: str, *points: tuple[float, float]) -> None:
        path = " ".join(f"{x:g},{y:g}" for x, y in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2.2"/>')

    def dot(color: str, x: float, y: float) -> None:
        parts.append(f'<circle cx="{x:g}" cy="{y:g}" r="3.6" fill="{color}"/>')

    def frame(x: float, y: float, width: float, height: float, fill: str, *lines: str) -> None:
        parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="7" fill="{fill}" stroke="{INK}"/>'
        )
        for i, text in enumerate(lines):
            weight = ' font-weight="600"' if i == 0 else ""
            middle = y + height / 2 + 5 + 17 * (i - (len(lines) - 1) / 2)
            parts.append(f'<text x="{x + width / 2:g}" y="{middle:g}" text-anchor="middle"{weight}>{text}</text>')

    def label(x: float, y: float, text: str, anchor: str = "start") -> None:
        parts.append(f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" font-size="13">{text}</text>')

    # Rails: ground and servo power run down the right side, the board's own 5 V down the left one.
    ground, power, board_5v, left_ground = 620.0, 650.0, 300.0, 270.0
    for i, (number, joint) in enumerate(zip(SERVO_PINS, JOINTS, strict=True)):
        y = 110 + 70 * i
        frame(730, y, 200, 50, "#e8f1fa", f"servo J{i + 1}", joint)
        wire(SIGNAL, (560, y + 12), (730, y + 12))
        wire(RED, (power, y + 26), (730, y + 26))
        wire(BLACK, (ground, y + 40), (730, y + 40))
        dot(RED, power, y + 26)
        dot(BLACK, ground, y + 40)
        label(552, y + 17, f"pin {number}", "end")
    for i, pin in enumerate(POT_PINS):
        y = 110 + 70 * i
        kind = "slide" if i < 3 else "rotary"
        frame(30, y, 170, 50, "#e6f5ef", f"potentiometer P{i + 1}", kind)
        wire(BLUE, (200, y + 12), (370, y + 12))
        wire(RED, (200, y + 26), (board_5v, y + 26))
        wire(BLACK, (200, y + 40), (left_ground, y + 40))
        dot(RED, board_5v, y + 26)
        dot(BLACK, left_ground, y + 40)
        label(378, y + 17, pin)
    parts.append(
        f'<rect x="370" y="90" width="190" height="460" rx="10" fill="none" stroke="{INK}" stroke-width="1.6"/>'
    )
    label(465, 290, "Arduino Uno", "middle")
    label(465, 310, "(ATmega328P)", "middle")
    label(465, 505, "inputs D2, D4, D7,", "middle")
    label(465, 522, "D8, D12: to ground", "middle")
    label(465, 82, "USB to the computer", "middle")
    wire(RED, (board_5v, 136), (board_5v, 575), (430, 575), (430, 550))
    wire(BLACK, (left_ground, 150), (left_ground, 600), (500, 600), (500, 550))
    label(424, 543, "5V", "end")
    label(494, 543, "GND", "end")
    wire(RED, (power, 136), (power, 640), (590, 640))
    wire(BLACK, (ground, 150), (ground, 665), (590, 665))
    wire(BLACK, (500, 600), (ground, 600))
    dot(BLACK, ground, 600)
    dot(BLACK, 500, 600)
    frame(470, 622, 120, 62, "#fdf0e6", "switch", "= stop")
    frame(250, 622, 190, 62, "#fdf0e6", "supply 5 V, 5 A", "for the servos alone")
    wire(RED, (440, 640), (470, 640))
    wire(BLACK, (440, 665), (470, 665))
    frame(700, 630, 230, 54, "#fdf6e3", "1000 uF, 16 V", "across the rail; mind + and -")
    wire(RED, (power, 640), (700, 640))
    wire(BLACK, (ground, 665), (700, 665))
    dot(RED, power, 640)
    dot(BLACK, ground, 665)
    for i, (color, text) in enumerate(
        (
            (SIGNAL, "signal"),
            (RED, "+ (board's 5 V left, supply right: never joined)"),
            (BLACK, "ground: all joined"),
            (BLUE, "wiper"),
        )
    ):
        x = (40, 140, 520, 700)[i]
        wire(color, (x, 722), (x + 26, 722))
        label(x + 34, 727, text)
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 960 750" font-family="sans-serif" font-size="15" '
        f'fill="{INK}">\n<title>Wiring of the kit</title>\n<rect width="960" height="750" fill="{PAPER}"/>\n'
        f'<text x="30" y="40" font-size="20" font-weight="600">Wiring of the kit</text>\n'
        '<text x="30" y="62" font-size="13">Plug of the supply out before you touch a wire. Servos never take their '
        "current from the board.</text>\n" + "\n".join(parts) + "\n</svg>\n"
    )
