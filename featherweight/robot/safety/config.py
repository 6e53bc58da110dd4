"""The limits of teleoperation."""

from typing import Literal

from pydantic import Field

from featherweight.config import Config


class SafetyConfig(Config):
    """Limits between a leader and a follower; the defaults are those of the safety page."""

    command_timeout_s: float = Field(default=0.2, gt=0, le=2)
    """Silence of the leader after which the arm is held."""
    max_age_ms: float = Field(default=250.0, gt=0)
    """Age above which a command from the network is dropped."""
    max_playout_ms: float = Field(default=150.0, ge=0, le=500)
    """Most that the playout buffer adds to the age of a command to even out jitter; 0 plays each one at once."""
    max_relative_target: float | None = Field(default=None, gt=0)
    """Largest difference of a command from the reported angle, in degrees, per command; None for no such limit."""
    max_speed_deg_s: float = Field(default=80.0, gt=0, le=90)
    """Largest speed of every joint while ACTIVE."""
    sync_speed_deg_s: float = Field(default=30.0, gt=0, le=90)
    """Largest speed while the arm catches up with the leader (SYNC)."""
    sync_tolerance_deg: float = Field(default=5.0, gt=0, le=45)
    """SYNC ends when every joint is within this of the leader."""
    guard: bool = True
    """Whether commands into the table or into the arm itself are refused."""
    integer: Literal["nearest", "search"] = "nearest"
    """"search" takes the whole degrees whose tool point is nearest, for slow and exact motion; "nearest" rounds."""
    lease_s: float = Field(default=2.0, gt=0)
    """Silence after which an operator's place is free for another one."""
