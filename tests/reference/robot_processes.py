"""`fw robot` in a process of its own."""

import os
import subprocess
import sys


def start(*arguments, **environment):
    return subprocess.Popen(
        [sys.executable, "-m", "featherweight", "robot", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
    )


def stop(processes):
    """Kill what still runs, so that one failure leaves nothing for the next test."""
    for process in processes:
        process.kill()
        process.communicate()
