"""The wiring diagram: board, six servos on their own supply, six potentiometers, one ground; an SVG of our own."""

from featherweight.robot.kit import JOINTS

SERVO_PINS = (3, 5, 6, 9, 10, 11)
POT_PINS = ("A0", "A1", "A2", "A3", "A4", "A5")
INK, RED, BLACK, SIGNAL, BLUE, PAPER = "#1f2328", "#c0392b", "#1f2328", "#d98200", "#2f6fb0", "#ffffff"


class _Canvas:
    """Collects the shapes of a drawing."""

    def __init__(self) -> None:
        self.parts: list[str] = []

    def wire(self, color: str, *points: tuple[float, float]) -> None:
        path = " ".join(f"{x:g},{y:g}" for x, y in points)
        self.parts.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2.2"/>')

    def dot(self, color: str, x: float, y: float) -> None:
        self.parts.append(f'<circle cx="{x:g}" cy="{y:g}" r="3.6" fill="{color}"/>')

    def frame(self, x: float, y: float, width: float, height: float, fill: str, *lines: str) -> None:
        self.parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="7" fill="{fill}" stroke="{INK}"/>'
        )
        for i, text in enumerate(lines):
            weight = ' font-weight="600"' if i == 0 else ""
            middle = y + height / 2 + 5 + 17 * (i - (len(lines) - 1) / 2)
            self.parts.append(f'<text x="{x + width / 2:g}" y="{middle:g}" text-anchor="middle"{weight}>{text}</text>')

    def label(self, x: float, y: float, text: str, anchor: str = "start") -> None:
        self.parts.append(f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" font-size="13">{text}</text>')


# Rails: ground and servo power run down the right side, ground and the board's own 5 V down the left one.
_GROUND, _POWER, _BOARD_5V, _LEFT_GROUND = 620.0, 650.0, 300.0, 270.0


def _servos(canvas: _Canvas) -> None:
    for i, (number, joint) in enumerate(zip(SERVO_PINS, JOINTS, strict=True)):
        y = 110 + 70 * i
        canvas.frame(730, y, 200, 50, "#e8f1fa", f"servo J{i + 1}", joint)
        canvas.wire(SIGNAL, (560, y + 12), (730, y + 12))
        canvas.wire(RED, (_POWER, y + 26), (730, y + 26))
        canvas.wire(BLACK, (_GROUND, y + 40), (730, y + 40))
        canvas.dot(RED, _POWER, y + 26)
        canvas.dot(BLACK, _GROUND, y + 40)
        canvas.label(552, y + 17, f"pin {number}", "end")


def _potentiometers(canvas: _Canvas) -> None:
    for i, pin in enumerate(POT_PINS):
        y = 110 + 70 * i
        canvas.frame(30, y, 170, 50, "#e6f5ef", f"potentiometer P{i + 1}", "slide" if i < 3 else "rotary")
        canvas.wire(BLUE, (200, y + 12), (370, y + 12))
        canvas.wire(RED, (200, y + 26), (_BOARD_5V, y + 26))
        canvas.wire(BLACK, (200, y + 40), (_LEFT_GROUND, y + 40))
        canvas.dot(RED, _BOARD_5V, y + 26)
        canvas.dot(BLACK, _LEFT_GROUND, y + 40)
        canvas.label(378, y + 17, pin)


def _board(canvas: _Canvas) -> None:
    canvas.parts.append(
        f'<rect x="370" y="90" width="190" height="460" rx="10" fill="none" stroke="{INK}" stroke-width="1.6"/>'
    )
    for y, text in (
        (82, "USB to the computer"),
        (290, "Arduino Uno"),
        (310, "(ATmega328P)"),
        (505, "inputs D2, D4, D7,"),
        (522, "D8, D12: to ground"),
    ):
        canvas.label(465, y, text, "middle")
    canvas.wire(RED, (_BOARD_5V, 136), (_BOARD_5V, 575), (430, 575), (430, 550))
    canvas.wire(BLACK, (_LEFT_GROUND, 150), (_LEFT_GROUND, 600), (500, 600), (500, 550))
    canvas.label(424, 543, "5V", "end")
    canvas.label(494, 543, "GND", "end")


def _supply(canvas: _Canvas) -> None:
    canvas.wire(RED, (_POWER, 136), (_POWER, 640), (590, 640))
    canvas.wire(BLACK, (_GROUND, 150), (_GROUND, 665), (590, 665))
    canvas.wire(BLACK, (500, 600), (_GROUND, 600))
    canvas.dot(BLACK, _GROUND, 600)
    canvas.dot(BLACK, 500, 600)
    canvas.frame(470, 622, 120, 62, "#fdf0e6", "switch", "= stop")
    canvas.frame(250, 622, 190, 62, "#fdf0e6", "supply 5 V, 5 A", "for the servos alone")
    canvas.wire(RED, (440, 640), (470, 640))
    canvas.wire(BLACK, (440, 665), (470, 665))
    canvas.frame(700, 630, 230, 54, "#fdf6e3", "1000 uF, 16 V", "across the rail; mind + and -")
    canvas.wire(RED, (_POWER, 640), (700, 640))
    canvas.wire(BLACK, (_GROUND, 665), (700, 665))
    canvas.dot(RED, _POWER, 640)
    canvas.dot(BLACK, _GROUND, 665)


def wiring_svg() -> str:
    """Return the diagram; wires of one color are one net."""
    canvas = _Canvas()
    for draw in (_servos, _potentiometers, _board, _supply):
        draw(canvas)
    for x, color, text in (
        (40, SIGNAL, "signal"),
        (140, RED, "+ (board's 5 V left, supply right: never joined)"),
        (520, BLACK, "ground: all joined"),
        (700, BLUE, "wiper"),
    ):
        canvas.wire(color, (x, 722), (x + 26, 722))
        canvas.label(x + 34, 727, text)
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 960 750" font-family="sans-serif" font-size="15" '
        f'fill="{INK}">\n<title>Wiring of the kit</title>\n<rect width="960" height="750" fill="{PAPER}"/>\n'
        '<text x="30" y="40" font-size="20" font-weight="600">Wiring of the kit</text>\n'
        '<text x="30" y="62" font-size="13">Plug of the supply out before you touch a wire. Servos never take their '
        "current from the board.</text>\n" + "\n".join(canvas.parts) + "\n</svg>\n"
    )
