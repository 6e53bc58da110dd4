"""The kit: joints, limits, rates and the numbers of its serial line, once for driver, emulator and simulator.

Source: UMIRobot, arXiv 2301.06668, and the behaviour of its published firmware.
"""

JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "forearm_roll", "wrist_flex", "gripper")
"""Names of the six servos in the order of the wire; the last one drives the gripper."""
JOINT_KEYS = tuple(f"{joint}.pos" for joint in JOINTS)
"""Keys of observations and actions, as LeRobot writes them; values in degrees."""
SERVOS = len(JOINTS)
ARM_JOINTS = SERVOS - 1
"""All but the gripper."""
POTENTIOMETERS = 6
DIGITAL_INPUTS = 5

LIMIT_DEG = 90
"""Every servo turns from -90 to +90 degrees."""
POT_MAX = 1023
"""Largest reading of a potentiometer (10 bits)."""
POT_VOLT = 5.0
"""Voltage of the largest reading."""

BAUD = 115200
BYTES_PER_S = BAUD / 10
"""One start bit, eight bits, one stop bit."""
BYTE_US = 87
"""Time of one byte on the wire, in whole microseconds (86.8)."""
RING_BYTES = 63
"""Unread bytes that the Arduino keeps: its ring has 64 places, and a full ring leaves one empty."""
LOOP_US = 11_400
"""Period of the firmware's loop: 10 ms of delay and about 1.4 ms of work."""
PARSE_TIMEOUT_US = 1_000_000
"""How long the firmware waits for each byte of a number, standing still meanwhile."""
BOOT_S = 1.6
"""Silence of the boot loader after the port was opened."""
STEP_DEG = 1
"""A servo moves by at most this much in one loop."""
TOP_SPEED_DEG_S = STEP_DEG * 1e6 / LOOP_US
"""About 88 degrees a second."""

USB_VENDORS = (0x2341, 0x2A03, 0x1A86)
"""Arduino, Arduino (second identity), and the CH340 of most clones."""
