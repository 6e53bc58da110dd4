"""Real cameras for tests: ffmpeg's moving test picture as a file, over UDP and over HTTP, from a process of its own."""

import contextlib
import socket
import subprocess
import time

from featherweight.robot.camera.source import find_ffmpeg


def wait_for(condition, seconds=10.0):
    """Wait until a condition holds; return whether it does."""
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        if condition():
            return True
        time.sleep(0.01)
    return False


def free_port(kind=socket.SOCK_STREAM):
    with socket.socket(socket.AF_INET, kind) as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def film(path, *sizes, fps=30, seconds=1.0):
    """Write a film whose pictures have one size after the other; return the path."""
    data = b""
    for size in sizes:
        arguments = ["-f", "lavfi", "-i", f"testsrc2=size={size}:rate={fps}", "-t", str(seconds)]
        arguments += ["-c:v", "mpeg2video", "-b:v", "2M", "-f", "mpegts", "-"]
        data += subprocess.run([find_ffmpeg(), "-v", "error", *arguments], capture_output=True, check=True).stdout
    path.write_bytes(data)
    return path


@contextlib.contextmanager
def sender(address, size="320x240", fps=30):
    """A second ffmpeg that sends the test picture over UDP, or answers one request over HTTP; killed at the end."""
    target = ["-f", "mpegts", address] if address.startswith("udp") else ["-listen", "1", "-f", "mpjpeg", address]
    coder = ["-c:v", "mpeg2video", "-b:v", "4M", "-g", "5"] if address.startswith("udp") else ["-c:v", "mjpeg"]
    source = ["-re", "-f", "lavfi", "-i", f"testsrc2=size={size}:rate={fps}"]
    process = subprocess.Popen([find_ffmpeg(), "-v", "error", "-nostdin", *source, *coder, *target])
    try:
        yield process
    finally:
        process.kill()
        process.wait()
