"""Sessions are secret random numbers; their tags are public."""

import hashlib
import secrets


def new_session() -> int:
    """Return a fresh 63-bit session; who knows it may drive, so it is sent to the robot alone."""
    return secrets.randbits(62) + 1


def session_tag(session: int) -> str:
    """Return what tells a session without revealing it."""
    return hashlib.sha256(session.to_bytes(8, "little")).hexdigest()[:12]
