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
