"""The page for people, in a headless browser."""

import asyncio
import base64
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import httpx
import pytest
from guard_stand_in import FORBIDDEN, generated_world, load_fixture, load_guard, marked
from running_server import running

BROWSER = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
WORLD = generated_world()


def test_the_page_is_served_on_request_alone_and_loads_nothing_from_elsewhere():
    with running(*load_fixture(), page=True, name="stand-in") as server:
        page = httpx.get(server.url)
        assert "default-src 'self'" in page.headers["content-security-policy"]
        assert "http://" not in page.text and "https://" not in page.text and "src=" not in page.text
        assert httpx.get(server.url + "/health").json() == {"status": "ok", "model": "stand-in"}
    with running(*load_fixture()) as server:
        assert httpx.get(server.url).status_code == 404


class Browser:
    """What a person does, through the protocol of Chromium's developer tools."""

    def __init__(self, socket):
        self._socket, self._number = socket, 0

    async def call(self, method, **params):
        self._number += 1
        await self._socket.send(json.dumps({"id": self._number, "method": method, "params": params}))
        while True:
            found = json.loads(await self._socket.recv())
            if found.get("id") == self._number:
                return found["result"]

    async def value(self, code):
        return (await self.call("Runtime.evaluate", expression=code, awaitPromise=True))["result"].get("value")

    async def until(self, code):
        for _ in range(300):
            if await self.value(code):
                return
            await asyncio.sleep(0.1)
        raise AssertionError(code)

    async def type_and_enter(self, text):
        await self.value("document.getElementById('text').focus()")
        await self.call("Input.insertText", text=text)
        for kind in ("keyDown", "keyUp"):
            await self.call(
                "Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", windowsVirtualKeyCode=13, text="\r"
            )


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
def test_a_person_chats_by_keyboard_and_sees_answers_and_refusals(tmp_path):
    websockets = pytest.importorskip("websockets")
    guard = load_guard().bind(*load_fixture())
    good, bad = WORLD.prompts("test", "ordinary", 1)[0], marked(WORLD.prompts("test", FORBIDDEN, 1)[0])

    async def visit(url, port):
        async with httpx.AsyncClient() as client:
            for _ in range(300):
                try:
                    pages = (await client.get(f"http://127.0.0.1:{port}/json")).json()
                    break
                except httpx.HTTPError:
                    await asyncio.sleep(0.1)
        target = next(page["webSocketDebuggerUrl"] for page in pages if page["type"] == "page")
        async with websockets.connect(target, max_size=None) as socket:
            browser = Browser(socket)
            await browser.call(
                "Emulation.setDeviceMetricsOverride", width=390, height=800, deviceScaleFactor=1, mobile=True
            )
            await browser.call("Page.navigate", url=url)
            await browser.until("document.getElementById('name')?.textContent === 'stand-in'")
            await browser.type_and_enter(good)
            await browser.until("document.getElementById('status').textContent === 'Done'")
            assert await browser.value("document.querySelectorAll('.turn').length") == 2
            await browser.value("document.getElementById('reset').click()")
            await browser.type_and_enter(bad)
            await browser.until("document.getElementById('status').textContent === 'The request was refused'")
            assert await browser.value("document.documentElement.scrollWidth <= 390")
            assert await browser.value("document.querySelectorAll('.turn').length") == 2
            assert guard.options.refusal_text in await browser.value("document.querySelector('.refused').textContent")
            assert "score" in await browser.value("document.querySelector('.refused .note').textContent")
            assert await browser.value("document.activeElement.id") == "text"
            await browser.type_and_enter(good)
            await browser.until("document.getElementById('status').textContent === 'Done'")
            for width, scheme in itertools.product((390, 1280), ("light", "dark")):
                await browser.call(
                    "Emulation.setDeviceMetricsOverride",
                    width=width,
                    height=800,
                    deviceScaleFactor=1,
                    mobile=width < 600,
                )
                media = [{"name": "prefers-color-scheme", "value": scheme}]
                await browser.call("Emulation.setEmulatedMedia", features=media)
                assert await browser.value(f"document.documentElement.scrollWidth <= {width}")
                ground = await browser.value("getComputedStyle(document.body).backgroundColor")
                assert (sum(int(one) for one in re.findall(r"\d+", ground)[:3]) < 380) == (scheme == "dark")
                shot = await browser.call("Page.captureScreenshot", format="png")
                Path(tmp_path / f"page-{width}-{scheme}.png").write_bytes(base64.b64decode(shot["data"]))

    with running(*load_fixture(), guard, page=True, name="stand-in", guard_details=True, max_new_tokens=24) as server:
        command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0"]
        process = subprocess.Popen(
            [*command, f"--user-data-dir={tmp_path / 'profile'}", "about:blank"],
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            place = tmp_path / "profile" / "DevToolsActivePort"
            deadline = time.monotonic() + 60
            while not place.exists() and time.monotonic() < deadline:
                time.sleep(0.1)
            asyncio.run(visit(server.url + "/", place.read_text().split()[0]))
        finally:
            # The command is a script on some systems, so all that it has started ends with it.
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(30)
