"""The server of a classroom: pages, robots and simulators of one or more classes on one port, encrypted."""

import ssl
import threading
from collections.abc import Sequence
from pathlib import Path

from featherweight.errors import ConfigError
from featherweight.robot.classroom.room import ClassRoom
from featherweight.robot.classroom.simulators import Simulators, student_command
from featherweight.robot.network.relay import relay_context
from featherweight.robot.web.server import WebServer

LOOK_S = 1.0


class ClassServer:
    """Serves classes; `start` and `close` it.

    Args:
        folders: of the classes; of one authority, as they share a port.
        host: address to listen on.
        port: 0 takes a free one.
        slice_s: how long a turn at a shared robot lasts while others wait.
        cubes: on the table of each simulator.
        cameras: of each simulator; none leaves the page its drawing.
    Raises:
        ConfigError: if a folder is not one of a room, two have one name, or their authorities differ.
        DeviceError: if the port cannot be used.
    """

    def __init__(
        self,
        folders: Sequence[str | Path],
        host: str = "127.0.0.1",
        port: int = 7443,
        slice_s: float = 300.0,
        cubes: int = 3,
        cameras: Sequence[str] = (),
    ) -> None:
        self.rooms = {room.name: room for room in (ClassRoom(folder, slice_s) for folder in folders)}
        if len(self.rooms) < len(folders):
            raise ConfigError(
                f"fw robot class: two of {', '.join(map(str, folders))} have one name; expected names of their own. "
                "Make one anew with another --room."
            )
        first = Path(folders[0])
        for folder in folders[1:]:
            if (Path(folder) / "ca.pem").read_bytes() != (first / "ca.pem").read_bytes():
                raise ConfigError(
                    f"fw robot class: class={folder} has another authority than {first}; expected one for one port. "
                    f"Make it with --authority {first}, or serve it on another port."
                )
        self._cubes, self._cameras = cubes, cameras
        self._server = WebServer(
            self.rooms,
            host,
            port,
            relay_context(first, ssl.CERT_OPTIONAL),
            frozenset(),  # any name: without the right one the certificate is refused anyway
            relays={name: room.relay for name, room in self.rooms.items()},
        )
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, name="class", daemon=True)
        self.simulators: Simulators | None = None

    @property
    def uri(self) -> str:
        """Address of the pages."""
        return self._server.uri

    def start(self) -> "ClassServer":
        """Listen, and start the simulators."""
        self._server.start()
        relay = f"wss://127.0.0.1:{self._server.port}"
        commands = {}
        for room in self.rooms.values():
            for name, owner in room.owners.items():
                member, folder = room.folder / "members" / name, room.folder / "students" / owner
                commands[f"{room.name}/{name}"] = student_command(
                    str(member), relay, str(folder), self._cubes, self._cameras
                )
        self.simulators = Simulators(commands)
        self._thread.start()
        return self

    def stop_all(self, room: str, name: str = "the server") -> None:
        """Stop every robot of a class."""
        self._server.call(lambda: self.rooms[room].stop_all(name))

    def close(self) -> None:
        """End pages and simulators; every arm is held."""
        self._stop.set()
        if self.simulators is not None:
            self.simulators.close()
        self._server.close()
        for room in self.rooms.values():
            room.uploads.close()

    def _look(self) -> None:
        while not self._stop.wait(LOOK_S):
            for room in self.rooms.values():
                self._server.call(room.look)
