"""An emulated kit that is fed bytes and listened to."""

START_US = 100_000


def run(kit, data, seconds=10.0, step_us=1000):
    """Send bytes at 0.1 s; return (longest silence in s, all bytes) up to the end."""
    kit.open(0)
    kit.read(START_US)
    kit.write(START_US, data)
    now_us = last_us = START_US
    silence_us, output = 0, b""
    while now_us < START_US + seconds * 1e6:
        now_us += step_us
        got = kit.read(now_us)
        if got:
            silence_us, last_us, output = max(silence_us, now_us - last_us), now_us, output + got
    return silence_us / 1e6, output
