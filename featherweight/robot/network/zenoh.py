"""The zenoh transport: mutual TLS and access lists by certificate name at the relay; pictures never delay commands.

Names follow eclipse-zenoh 1.10. Multicast scouting is off: nobody finds a robot who was not told where it is.
"""

import json
from pathlib import Path
from typing import Any

from featherweight.errors import ConfigError, DeviceError, MissingExtraError
from featherweight.robot.network.membership import Membership
from featherweight.robot.network.transport import Callback


def import_zenoh() -> Any:
    """Import zenoh, or say how to install it."""
    try:
        import zenoh
    except ImportError as error:
        raise MissingExtraError(
            "robot: package=eclipse-zenoh is not installed; expected it for --relay tls/. Run pip install "
            "featherweight[robot]."
        ) from error
    return zenoh


class ZenohRelay:
    """A zenoh router in this process, with the access rules of a room.

    Args:
        folder: that `fw robot class init` made.
        endpoint: to listen on, such as "tls/0.0.0.0:7447".
    Raises:
        ConfigError: if the folder is not one of a room.
        DeviceError: if it cannot listen.
    """

    def __init__(self, folder: str | Path, endpoint: str) -> None:
        zenoh, folder = import_zenoh(), Path(folder)
        try:
            rules = json.loads((folder / "zenoh_relay.json5").read_text())["access_control"]
        except (OSError, ValueError, KeyError) as error:
            raise ConfigError(
                f"robot: class={folder} is no folder of a room ({error}); expected zenoh_relay.json5. Make it "
                f"with fw robot class init."
            ) from error
        tls = {
            "root_ca_certificate": str(folder / "ca.pem"),
            "listen_certificate": str(folder / "relay" / "cert.pem"),
            "listen_private_key": str(folder / "relay" / "key.pem"),
            "enable_mtls": True,
        }
        config = _config(
            zenoh, "router", {"listen/endpoints": [endpoint], "transport/link/tls": tls, "access_control": rules}
        )
        try:
            self._session: Any = zenoh.open(config)
        except zenoh.ZError as error:
            raise DeviceError(
                f"robot: relay={endpoint} cannot listen ({_one_line(error)}); expected a free port. Choose another."
            ) from error

    def close(self) -> None:
        """End the relay."""
        self._session.close()


class ZenohTransport:
    """A participant's session; see `Transport`.

    Args:
        endpoint: of the relay, such as "tls/lab.example.org:7447"; "tcp/..." only on one computer.
        member: certificate and role of the participant.
        listens: be a peer that listens there instead of a client that connects (for two processes without a relay).
    Raises:
        DeviceError: if the relay cannot be reached or refuses the participant.
    """

    def __init__(self, endpoint: str, member: Membership, listens: bool = False) -> None:
        self._zenoh = zenoh = import_zenoh()
        settings: dict[str, Any] = {}
        if listens:
            settings["listen/endpoints"] = [endpoint]
        else:
            settings["connect/endpoints"] = [endpoint]
        if member.folder is not None:
            settings["transport/link/tls"] = {
                "root_ca_certificate": str(member.folder / "ca.pem"),
                "connect_certificate": str(member.folder / "cert.pem"),
                "connect_private_key": str(member.folder / "key.pem"),
                "enable_mtls": True,
            }
        mode = "client" if endpoint.startswith("tls/") else "peer"
        try:
            self._session: Any = zenoh.open(_config(zenoh, mode, settings))
        except zenoh.ZError as error:
            raise DeviceError(
                f"robot: relay={endpoint} cannot be used ({_one_line(error)}); expected a relay of this "
                f"participant's room. "
                "Check the address, and use the files that fw robot class init made for this room."
            ) from error
        self._publishers: dict[str, Any] = {}
        self._kept: list[Any] = []
        self._is_open = True

    @property
    def is_connected(self) -> bool:
        """Whether the session is open and knows a relay or a peer."""
        if not self._is_open:
            return False
        info = self._session.info
        return bool(list(info.routers_zid()) or list(info.peers_zid()))

    def publish(self, topic: str, message: bytes) -> None:
        """See `Transport`."""
        if not self._is_open:
            return
        publisher = self._publishers.get(topic)
        if publisher is None:
            publisher = self._publishers[topic] = self._session.declare_publisher(topic, **self._quality(topic))
        try:
            publisher.put(message)
        except self._zenoh.ZError:
            # The link is gone; zenoh connects again by itself.
            self._publishers.pop(topic, None)

    def subscribe(self, topic: str, callback: Callback) -> None:
        """See `Transport`."""
        self._kept.append(
            self._session.declare_subscriber(
                topic, lambda sample: callback(str(sample.key_expr), sample.payload.to_bytes())
            )
        )

    def liveliness(self, topic: str) -> None:
        """See `Transport`."""
        self._kept.append(self._session.liveliness().declare_token(topic))

    def roster(self, topic: str) -> list[str]:
        """See `Transport`; asks the relay."""
        replies = self._session.liveliness().get(topic, timeout=2.0)
        return sorted({str(reply.ok.key_expr) for reply in replies if reply.ok is not None})

    def close(self) -> None:
        """See `Transport`."""
        if self._is_open:
            self._is_open = False
            self._session.close()

    def _quality(self, topic: str) -> dict[str, Any]:
        zenoh = self._zenoh
        drop, block = zenoh.CongestionControl.DROP, zenoh.CongestionControl.BLOCK
        kind = topic.split("/")[3] if topic.count("/") >= 3 else ""
        if kind in ("cmd", "state"):
            return {"congestion_control": drop, "priority": zenoh.Priority.REAL_TIME, "express": True}
        if kind in ("cam", "status"):
            # Dropped rather than waited for: the robot's control loop says its status and must never stand still.
            return {"congestion_control": drop, "priority": zenoh.Priority.DATA_LOW}
        return {"congestion_control": block, "priority": zenoh.Priority.INTERACTIVE_HIGH}


def _config(zenoh: Any, mode: str, settings: dict[str, Any]) -> Any:
    config = zenoh.Config()
    for key, value in {"mode": mode, "scouting/multicast/enabled": False, **settings}.items():
        config.insert_json5(key, json.dumps(value))
    return config


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
