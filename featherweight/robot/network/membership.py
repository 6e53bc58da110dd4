"""What a participant of a room carries: name, role, certificate, token."""

import json
import ssl
from dataclasses import dataclass
from pathlib import Path

from featherweight.errors import ConfigError
from featherweight.robot.network.topics import ROLES


@dataclass(frozen=True)
class Membership:
    """One participant; `load` reads the folder that `fw robot class init` made for it.

    Attributes:
        folder: with ca.pem, cert.pem and key.pem; None without TLS.
        token: secret that the relay knows the hash of.
    """

    name: str
    role: str
    room: str
    token: str
    folder: Path | None = None

    @classmethod
    def load(cls, folder: str | Path) -> "Membership":
        """Read a participant's folder.

        Raises:
            ConfigError: if a file is missing or damaged.
        """
        folder = Path(folder)
        try:
            member = json.loads((folder / "member.json").read_text())
            token = (folder / "token").read_text().strip()
            name, role, room = (str(member[key]) for key in ("name", "role", "room"))
            for file in ("ca.pem", "cert.pem", "key.pem"):
                (folder / file).read_bytes()
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"robot: class={folder} is no folder of a participant ({error}); expected member.json, token, "
                f"ca.pem, cert.pem "
                "and key.pem. Make it with fw robot class init."
            ) from error
        if role not in ROLES:
            raise ConfigError(
                f"robot: role={role} of {folder} is unknown; expected one of {', '.join(ROLES)}. Make it again."
            )
        return cls(name, role, room, token, folder)

    def client_context(self) -> ssl.SSLContext:
        """Return the TLS settings of a client that shows its certificate and trusts its room's authority alone."""
        assert self.folder is not None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_verify_locations(self.folder / "ca.pem")
        context.load_cert_chain(self.folder / "cert.pem", self.folder / "key.pem")
        return context
