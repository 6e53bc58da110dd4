"""Who may drive: one session at a time, until it is silent for two seconds, releases, or an instructor takes over."""

from collections import deque
from dataclasses import dataclass


@dataclass(frozen=True)
class Holder:
    """The session that may drive."""

    session: int
    name: str
    is_instructor: bool


class Lease:
    """The operator's place.

    Args:
        expiry_s: silence after which it is free.
    """

    def __init__(self, expiry_s: float = 2.0) -> None:
        self.holder: Holder | None = None
        self._expiry_s = expiry_s
        self._seen_s = 0.0
        self._retired: set[int] = set()
        self.retired: deque[int] = deque(maxlen=8)
        """The sessions that lost the place last."""

    def request(self, session: int, name: str, is_instructor: bool, now_s: float) -> bool:
        """Ask for the place; return whether the session has it.

        A session that lost its place never gets it again, so that recorded frames of it are worthless; an operator asks
        with a new session.
        """
        self.expire(now_s)
        if session in self._retired or session == 0:
            return False
        holder = self.holder
        if holder is not None and holder.session != session:
            if not is_instructor or holder.is_instructor:
                return False
            self._retire(holder.session)
        self.holder, self._seen_s = Holder(session, name, is_instructor), now_s
        return True

    def owns(self, session: int, now_s: float) -> bool:
        """Return whether a session has the place."""
        self.expire(now_s)
        return self.holder is not None and self.holder.session == session

    def renew(self, now_s: float) -> None:
        """The holder sent a good frame."""
        self._seen_s = now_s

    def release(self, session: int) -> bool:
        """The holder leaves; return whether it was the holder."""
        if self.holder is None or self.holder.session != session:
            return False
        self._retire(session)
        self.holder = None
        return True

    def expire(self, now_s: float) -> None:
        """Free the place if its holder has been silent for too long."""
        if self.holder is not None and now_s - self._seen_s > self._expiry_s:
            self._retire(self.holder.session)
            self.holder = None

    def _retire(self, session: int) -> None:
        self._retired.add(session)
        self.retired.append(session)
