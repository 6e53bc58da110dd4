"""The files of the page, from the package itself, and the rules under which a browser may use them.

Nothing comes from another host: no font, no script, no picture. The page may talk to its own server alone.
"""

import importlib.resources
from collections.abc import Mapping

KINDS = {"html": "text/html; charset=utf-8", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


def read_page() -> dict[str, tuple[str, bytes]]:
    """Return file name -> (content type, bytes); the page itself has the name ""."""
    found = {}
    for file in importlib.resources.files("featherweight.robot.web").joinpath("static").iterdir():
        kind = KINDS.get(file.name.rsplit(".", 1)[-1])
        if kind is not None:
            found["" if file.name == "index.html" else file.name] = (kind, file.read_bytes())
    return found


def is_own_host(headers: Mapping[str, str], hosts: frozenset[str]) -> bool:
    """Return whether a request was meant for this server and comes from its own page.

    A page of another site that a name server leads here (DNS rebinding) has another Host, and one that opens a socket
    from elsewhere another Origin.

    Args:
        headers: of the request.
        hosts: names under which this server is reached, without port; empty for any.
    """
    host = headers.get("Host", "")
    name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
    if hosts and name.strip("[]") not in hosts:
        return False
    origin = headers.get("Origin")
    return origin is None or origin.split("://", 1)[-1] == host
