"""The thread that serves sockets."""

import socket
import threading

import pytest

from featherweight.errors import DeviceError
from featherweight.robot.network.socket_server import SocketServer
from featherweight.robot.network.websocket import import_websockets


class Echo(SocketServer):
    def check(self, connection, request):
        return None if request.path == "/in" else connection.respond(404, "elsewhere\n")

    async def talk(self, socket):
        async for text in socket:
            await socket.send(text)


def test_it_serves_whom_it_lets_in_until_it_is_closed():
    from websockets.sync import client

    server = Echo("echo", "127.0.0.1", 0, None, ping_timeout_s=4).start()
    with client.connect(f"ws://127.0.0.1:{server.port}/in") as connection:
        connection.send("hello")
        assert connection.recv(5) == "hello"
        with pytest.raises(Exception, match="404"):
            client.connect(f"ws://127.0.0.1:{server.port}/out")
        called = threading.Event()
        server.call(called.set)
        assert called.wait(5)
        server.close()
        with pytest.raises(import_websockets().exceptions.ConnectionClosed):
            connection.recv(5)


def test_a_port_that_is_taken_is_an_error_of_the_one_who_starts():
    with socket.create_server(("127.0.0.1", 0)) as used:
        server = Echo("echo", "127.0.0.1", used.getsockname()[1], None, ping_timeout_s=4)
        with pytest.raises(DeviceError, match=r"cannot be used .* expected a free one"):
            server.start()
