"""How a server behaves: where it listens, who may ask, and how much."""

import ipaddress
from typing import Self

from pydantic import Field, model_validator

from featherweight.config import Config


class ServeOptions(Config):
    """The settings of a server."""

    host: str = "127.0.0.1"
    """Address to listen on. Any other than this machine's own needs an `api_key`."""
    port: int = Field(default=8000, ge=0, le=65535)
    """Port; 0 takes a free one."""
    api_key: str | None = Field(default=None, min_length=1)
    """What clients must send as bearer token; None lets everybody ask."""
    name: str = "model"
    """What the model is called in requests and replies."""
    max_batch: int = Field(default=16, ge=1)
    """Requests that are answered together."""
    max_queue: int = Field(default=64, ge=0)
    """Requests that wait; more are told to come again (429)."""
    max_body_bytes: int = Field(default=1_000_000, ge=1)
    """Larger requests are refused (413)."""
    max_new_tokens: int = Field(default=1024, ge=1)
    """Of an answer, at most, whatever a request asks for."""
    timeout_s: float = Field(default=300.0, gt=0)
    """A request that takes longer ends there."""
    shutdown_s: float = Field(default=30.0, ge=0)
    """So long running answers may go on when the server is told to stop."""
    page: bool = False
    """Serve a page for people at /."""
    guard_details: bool = False
    """Tell score and tier of each verdict; they help whoever wants to get around the guard."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.api_key is None and not is_loopback(self.host):
            raise ValueError(f"host {self.host} can be reached by others and asks for no api_key")
        return self


def is_loopback(host: str) -> bool:
    """Tell whether an address is reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
