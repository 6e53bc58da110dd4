"""The command as users start it: a process, signals, and the official client."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from guard_stand_in import FIXTURE, generated_world

from featherweight.errors import ConfigError
from featherweight.models.tokenizer import byte_tokenizer
from featherweight.serving.options import ServeOptions
from featherweight.serving.server import serve

ROOT = Path(__file__).parents[2]


def test_a_model_without_a_chat_template_is_not_served():
    with pytest.raises(ConfigError, match="has no chat template"):
        serve(None, byte_tokenizer(), ServeOptions())


@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_the_process_ends_its_streams_when_asked_to_and_leaves_nothing_locked_when_killed(end):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "featherweight",
        "serve",
        str(FIXTURE),
        "--guard",
        str(FIXTURE.with_name("stand_in_guard")),
    ]
    url = f"http://127.0.0.1:{port}"
    for _ in range(2 if end == signal.SIGKILL else 1):
        process = subprocess.Popen(
            [*command, "--port", str(port)], env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=ROOT
        )
        try:
            deadline = time.monotonic() + 120
            while time.monotonic() < deadline:
                try:
                    httpx.get(url + "/health")
                    break
                except httpx.ConnectError:
                    time.sleep(0.2)
            text = generated_world().prompts("test", "ordinary", 1)[0]
            body = {"messages": [{"role": "user", "content": text}], "stream": True, "temperature": 1.9, "seed": 3}
            try:
                with httpx.stream("POST", url + "/v1/chat/completions", json=body, timeout=60) as response:
                    lines = response.iter_lines()
                    next(line for line in lines if '"content": "' in line and '"content": ""' not in line)
                    process.send_signal(end)
                    rest = list(lines)
                assert end == signal.SIGKILL or rest[-2] == "data: [DONE]"
            except httpx.RemoteProtocolError:
                assert end == signal.SIGKILL
            process.wait(60)
        finally:
            process.kill()
            process.wait()
