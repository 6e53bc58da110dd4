"""People of a class for tests: pages without a browser, over TLS."""

import asyncio
import json
import math
import ssl
import threading
import time


def token(folder, name):
    return (folder / "members" / name / "token").read_text().strip()


def connect(server, folder, path):
    from websockets.asyncio.client import connect as open_socket

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(folder / "ca.pem")
    address = server.uri.replace("https:", "wss:") + path
    return open_socket(address, ssl=context, compression=None)


class Person(threading.Thread):
    """Opens a page and beats as it does, 30 times a second; drives a sine while `is_driving`.

    Args:
        server: of the class.
        folder: of the class.
        name: of the member.
        robot: whose page; None for the own.
    """

    def __init__(self, server, folder, name, robot=None):
        super().__init__(daemon=True)
        self.server, self.folder, self.person, self.robot = server, folder, name, robot
        self.state, self.told, self.welcome = {}, {}, {}
        self.is_driving, self.is_over = False, False
        self.modes, self.asked = [], []
        self.start()

    def ask(self, **request):
        self.asked.append(request)

    def run(self):
        asyncio.run(self._come_again())  # one thread for reading and writing, as TLS demands

    async def _come_again(self):
        room = json.loads((self.folder / "relay.json").read_text())["room"]
        while not self.is_over:
            try:
                async with connect(self.server, self.folder, f"{room}/page") as link:
                    await self._talk(link)
            except Exception:  # the server is gone for a moment: try again, as a page does
                await asyncio.sleep(0.2)

    async def _talk(self, link):
        await link.send(json.dumps({"hello": token(self.folder, self.person), "robot": self.robot}))
        self.welcome = json.loads(await asyncio.wait_for(link.recv(), 10))
        echo = came = due = 0
        while not self.is_over:
            now = time.monotonic() * 1000
            while self.asked:
                await link.send(json.dumps(self.asked.pop(0)))
            if now >= due:
                due = now + 33
                message = {"t": now, "e": echo, "h": now - came if came else 0, "s": self.state.get("s", 0)}
                if self.is_driving:
                    message["w"] = ["angles", [25 * math.sin(now / 1000 + i) for i in range(5)] + [0]]
                await link.send(json.dumps(message))
            try:
                text = await asyncio.wait_for(link.recv(), 0.03)
            except TimeoutError:
                continue
            if isinstance(text, bytes):
                continue
            self.state = json.loads(text)
            echo, came = self.state["t"], time.monotonic() * 1000
            self.told |= self.state.get("class", {})
            mode = self.state.get("mode")
            if mode and (not self.modes or self.modes[-1][1] != mode):
                self.modes.append((time.monotonic(), mode))


def wait_for(condition, seconds=30.0):
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        if condition():
            return time.monotonic()
        time.sleep(0.01)
    raise AssertionError("it did not come to pass")
