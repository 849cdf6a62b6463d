"""Whether a request says for which host it is, as RFC 9112, 3.2, asks of it."""

from __future__ import annotations

import re

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

_HOST = re.compile(
    rb"(?:\[[A-Za-z0-9:.%_~!$&'()*+,;=-]+\]|(?:[A-Za-z0-9._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*)(?::[0-9]*)?", re.ASCII
)
"""RFC 9110, 7.2: what may stand before a path in a URI, also nothing. What is in brackets is not looked at closely."""


def host_error(scope: Scope) -> str | None:
    """Why the request of `scope` has to be answered with 400; None: it has not.

    Where HTTP/2 has it, a server may have added the header, so that two that are the same are one.
    """
    hosts = [value.strip(b" \t") for name, value in scope["headers"] if name == b"host"]
    version = scope.get("http_version")
    if not hosts:
        return "a request has to have a Host header" if version == "1.1" else None
    if len(hosts) > 1 and (version in {"1.0", "1.1"} or len(set(hosts)) > 1):
        return "a request has one Host header only"
    return None if _HOST.fullmatch(hosts[0]) else "the Host header is no host"


class HostHeaderCheck:
    """`app`, which hears of no request that does not say rightly for which host it is."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        problem = host_error(scope) if scope["type"] == "http" else None
        if problem is None:
            await self._app(scope, receive, send)
        else:
            refusal = PlainTextResponse(f"{problem}\n", status_code=400, headers={"Connection": "close"})
            await refusal(scope, receive, send)
