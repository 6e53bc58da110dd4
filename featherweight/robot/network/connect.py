"""From an address to a transport."""

from pathlib import Path
from urllib.parse import urlparse

from featherweight.errors import ConfigError
from featherweight.robot.network.membership import Membership
from featherweight.robot.network.transport import Transport


def connect(address: str, member: Membership) -> Transport:
    """Connect a participant to a relay.

    Args:
        address: "wss://host:port" (websocket) or "tls/host:port" (zenoh).
        member: who connects.
    Raises:
        ConfigError: if the address is neither.
        DeviceError: if the relay cannot be reached or refuses the participant.
    """
    if urlparse(address).scheme == "wss":
        from featherweight.robot.network.websocket import WebSocketTransport

        return WebSocketTransport(address, member)
    if address.startswith("tls/"):
        from featherweight.robot.network.zenoh import ZenohTransport

        return ZenohTransport(address, member)
    raise ConfigError(
        f"robot: relay={address} is no address; expected wss://host:port or tls/host:port. Both are encrypted; "
        f"there is no other."
    )


def find_membership(room_folder: Path, name: str | None, role: str) -> Membership:
    """Return the membership in a participant's own folder, or in the folder of a whole room.

    Args:
        room_folder: of a participant, or of a room.
        name: of the participant; None takes the only one with the role.
        role: that is needed.
    Raises:
        ConfigError: if there is none.
    """
    if (room_folder / "member.json").exists():
        return Membership.load(room_folder)
    members = [Membership.load(path) for path in sorted((room_folder / "members").glob("*")) if path.is_dir()]
    fitting = [member for member in members if (member.name == name if name else member.role == role)]
    if len(fitting) != 1:
        known = ", ".join(f"{member.name} ({member.role})" for member in members) or "nobody"
        raise ConfigError(
            f"robot: class={room_folder} has {len(fitting)} members that fit name={name}, role={role}; expected "
            f"one of {known}. "
            "Name one, or give the folder of one participant."
        )
    return fitting[0]
