"""How the published firmware reads: (what comes, targets afterwards, accepted, rejected, silence in s).

A line of 20 bytes takes 1.7 ms on the wire, a loop 11.4 ms: hence 0.02 s for "no silence", and 0.1 s around the seconds
of the time-outs. Every row is decided by the real Arduino core in a simulated ATmega328P, too
(tests/contracts/test_robot_firmware.py).
"""

TABLE = [
    (b"10 -20 30 -40 90 -90\n", (10, -20, 30, -40, 90, -90), 1, 0, 0.0),
    (b"1 2 3 4 5 6\r\n", (0, 0, 0, 0, 0, 0), 0, 2, 6.0),
    (b"1 2 3 4 5 6\r\n7 8 9 10 11 12\n", (7, 8, 9, 10, 11, 12), 1, 1, 0.0),
    (b"1.5 2.5 3.5 4.5 5.5 6.5\n", (4, 5, 5, 5, 6, 5), 1, 1, 0.0),
    (b"None None None None None None\n", (0, 0, 0, 0, 0, 0), 0, 1, 6.0),
    (b"1 2 3\n", (0, 0, 0, 0, 0, 0), 0, 1, 3.0),
    (b"5-3 1 2 3 4\n", (5, -3, 1, 2, 3, 4), 1, 0, 0.0),
    (b"--5 1 2 3 4\n", (0, -5, 1, 2, 3, 4), 1, 0, 0.0),
    (b"- 1 2 3 4 5\n", (0, 1, 2, 3, 4, 5), 1, 0, 0.0),
    (b"70000 40000 1 2 3 4\n", (90, -90, 1, 2, 3, 4), 1, 0, 0.0),
    (b"1020 3 4 5 6 7\n", (90, 3, 4, 5, 6, 7), 1, 0, 0.0),
    (b"95 -95 0 0 0 0\n", (90, -90, 0, 0, 0, 0), 1, 0, 0.0),
    (b"1\x012 3 4 5 6 7\n", (12, 3, 4, 5, 6, 7), 1, 0, 0.0),
    (b"V 1 2 3 4 5 6\n", (1, 2, 3, 4, 5, 6), 1, 0, 0.0),
    (b"abc 1, 2; 3 x 4 5 6\n", (1, 2, 3, 4, 5, 6), 1, 0, 0.0),
]
