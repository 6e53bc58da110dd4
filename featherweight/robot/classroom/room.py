"""One class of a classroom server: who may open a page, whose turn it is, what all of them see.

It belongs to the thread of the server's event loop, as the room of the relay does.
"""

import json
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from featherweight.config import write_atomically
from featherweight.errors import ConfigError
from featherweight.robot.classroom.board import Board
from featherweight.robot.classroom.turns import Turns
from featherweight.robot.classroom.uploads import Uploads
from featherweight.robot.network.relay_room import RelayRoom
from featherweight.robot.network.topics import Topics
from featherweight.robot.network.transport import Transport
from featherweight.robot.web.session import Visitor

SERVER = "the class"
"""Name of the server in its room."""
STOPPED_FILE = "stopped"
CALMING = ("stop", "release", "pause")
"""Requests that only ever end motion."""
ABSENT_S = 20.0
"""Without an open page for this long, a turn or a place in the queue is lost."""


class ClassRoom:
    """A class; see `PageRoom`.

    Args:
        folder: of the room, that `fw robot class init` made.
        slice_s: how long a turn at a shared robot lasts while others wait.
        clock: time in seconds.
    """

    def __init__(self, folder: str | Path, slice_s: float = 300.0, clock: Callable[[], float] = time.monotonic) -> None:
        self.folder = Path(folder)
        self.relay = RelayRoom(self.folder, self._may_pass)
        self.name = self.relay.name
        self.board = Board(self.folder / "board.json")
        members = self.relay.members
        self.owners = {name: member["owner"] for name, member in members.items() if "owner" in member}
        """Simulator -> student."""
        self.robots_of_all = [name for name, member in members.items() if member["role"] == "robot"]
        self.turns = {name: Turns(slice_s, clock) for name in self.robots_of_all if name not in self.owners}
        self.uploads = Uploads(self.folder, clock)
        """What students hand in."""
        self.modes: dict[str, str] = {}
        """Robot -> mode, as it said last."""
        self.news: dict[str, dict[str, Any]] = {}
        """Simulator -> what it told last."""
        self._clock = clock
        self._seen_s: dict[tuple[str, str], float] = {}
        self._is_stopped = (self.folder / STOPPED_FILE).exists()
        self._transport = self.relay.join(SERVER, "instructor")
        self._transport.subscribe(f"fw/{self.name}/*/status", self._take_status)
        self._transport.subscribe(f"fw/{self.name}/*/status/class", self._take_news)

    # ---- what the server of the pages asks ------------------------------------------------------------------------

    def admit(self, token: str) -> Visitor | None:
        """See `PageRoom`."""
        member = self.relay.member(token)
        return None if member is None or member[1] == "robot" else Visitor(*member)

    def robots(self, visitor: Visitor) -> list[str]:
        """See `PageRoom`; students see their own simulator and the shared robots, others see all."""
        if visitor.role != "operator":
            return self.robots_of_all
        own = [name for name, owner in self.owners.items() if owner == visitor.name]
        return own + list(self.turns)

    async def join(self, visitor: Visitor) -> Transport:
        """See `PageRoom`."""
        return self.relay.join(visitor.name, visitor.role)

    def told(self, visitor: Visitor, robot: str) -> dict[str, Any] | None:
        """See `PageRoom`."""
        self._seen_s[visitor.name, robot] = self._clock()
        told: dict[str, Any] = {
            "stopped": self._is_stopped,
            "board": [
                {"name": row.name, "points": row.points, "placed": row.placed, "cubes": row.cubes, "time_s": row.time_s}
                for row in self.board.rows
            ],
        }
        turns, news = self.turns.get(robot), self.news.get(robot)
        if turns is not None:
            place = turns.place(visitor.name)
            told |= {"turns": True, "driver": turns.driver, "mine": place == 0, "waiting": place or 0}
            told["left"] = round(turns.left_s)
        if news is not None:
            score = news.get("score") or {}
            own = {key: news.get(key) for key in ("challenge", "left", "recording", "frames", "episodes", "trouble")}
            told["own"] = {**own, "points": score.get("points"), "uploads": self.uploads.told(visitor.name)}
        return {"class": told, "scene": news.get("scene") if news else None}

    def left(self, visitor: Visitor, robot: str) -> None:
        """See `PageRoom`; the place in the queue is kept for a while, as lines break."""
        self._seen_s[visitor.name, robot] = self._clock()

    def upload(self, visitor: Visitor, data: bytes) -> None:
        """See `PageRoom`; students hand in grippers and masters, bound to their names and this room."""
        if visitor.role == "operator":
            self.uploads.add(visitor.name, data)

    def ask(self, visitor: Visitor, robot: str, request: dict[str, Any]) -> None:
        """See `PageRoom`: {"turn": bool}, {"challenge": bool}, {"record": bool}, {"upload": {...}}, or of a teacher
        {"all": "stop"}.
        """
        if not isinstance(request, dict):
            return
        if "upload" in request and visitor.role == "operator":
            self.uploads.begin(visitor.name, request["upload"])
        if "turn" in request and robot in self.turns and visitor.role == "operator":
            turns = self.turns[robot]
            turns.ask(visitor.name) if request["turn"] and turns.place(visitor.name) is None else turns.leave(
                visitor.name
            )
        if request.get("all") in ("stop", "reset") and visitor.role == "instructor":
            self.stop_all(visitor.name) if request["all"] == "stop" else self.reset_all()
        is_own = self.owners.get(robot) == visitor.name or (visitor.role == "instructor" and robot in self.owners)
        if is_own and visitor.may_drive:
            for key in ("challenge", "record"):
                if key in request:
                    self._tell(robot, {"type": "class", key: bool(request[key])})

    # ---- the teacher's stop ----------------------------------------------------------------------------------------

    @property
    def is_stopped(self) -> bool:
        """Whether all robots are to stand; outlives the server."""
        return self._is_stopped

    def stop_all(self, name: str) -> None:
        """Stop every robot now, and every one that comes, until `reset_all`."""
        self._is_stopped = True
        for robot in self.robots_of_all:
            self._stop(robot, name)
        write_atomically(self.folder / STOPPED_FILE, f"{name}\n")

    def reset_all(self) -> None:
        """Clear the stops of all robots; each one goes on through SYNC."""
        self._is_stopped = False
        (self.folder / STOPPED_FILE).unlink(missing_ok=True)
        for robot in self.robots_of_all:
            self._tell(robot, {"type": "reset", "session": secrets.randbits(62) + 1, "name": SERVER})

    def look(self) -> None:
        """Forget who is gone; to be called about once a second."""
        self.uploads.look()
        now_s = self._clock()
        for (name, robot), seen_s in list(self._seen_s.items()):
            if now_s - seen_s > ABSENT_S:
                del self._seen_s[name, robot]
                if robot in self.turns:
                    self.turns[robot].leave(name)

    def _stop(self, robot: str, name: str) -> None:
        self._tell(robot, {"type": "stop", "name": name})

    def _tell(self, robot: str, request: dict[str, Any]) -> None:
        self._transport.publish(Topics(self.name, robot).instructor, json.dumps(request).encode())

    def _take_status(self, topic: str, message: bytes) -> None:
        robot = topic.split("/")[2]
        try:
            self.modes[robot] = str(json.loads(message)["mode"])
        except (ValueError, KeyError, TypeError):
            return
        if self._is_stopped and self.modes[robot] != "ESTOP":
            # One that came, or came back, after the stop.
            self._stop(robot, SERVER)

    def _take_news(self, topic: str, message: bytes) -> None:
        robot = topic.split("/")[2]
        try:
            news = dict(json.loads(message))
        except (ValueError, TypeError):
            return
        owner, score, before = self.owners.get(robot), news.get("score"), self.news.get(robot) or {}
        if owner is not None and score and score != before.get("score"):
            try:
                self.board.enter(owner, score)
            except ConfigError as error:  # a full disk; the log of the run tells the score
                news["trouble"] = str(error)
        self.news[robot] = news

    def _may_pass(self, name: str, role: str, topic: str, message: bytes) -> bool:
        """Let operators drive their own simulators, and a shared robot when it is their turn; all may stop that one."""
        robot, kind = topic.split("/")[2:4]
        if role != "operator" or kind not in ("cmd", "ctl"):
            return True
        if self._is_stopped:
            # No hand but the teacher's leads out of the teacher's stop.
            return kind == "ctl" and _kind(message) in CALMING
        if robot in self.owners:
            return self.owners[robot] == name
        turns = self.turns.get(robot)
        if turns is None or turns.driver == name:
            return True
        # Who gives the robot back, or holds it, may always do so.
        return kind == "ctl" and _kind(message) in CALMING


def _kind(message: bytes) -> str:
    try:
        return str(json.loads(message)["type"])
    except (ValueError, KeyError, TypeError):
        return ""
