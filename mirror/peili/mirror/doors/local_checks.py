"""Which requests the local door and the ops app refuse because a web page may have caused them.

A page of another site can let a browser on this host send requests to loopback. The browser then sends the page's
``Origin`` or a ``Sec-Fetch-Site``. If the page lets its own name resolve to 127.0.0.1 (DNS rebinding), the browser
takes the door for a part of the site, but sends that name as ``Host``. No runtime sends any of these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from ipaddress import ip_address
from typing import TypeAlias
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Receive, Scope, Send

from peili.mirror.doors.response import ResponseWriter
from peili.mirror.oci.requests import DENIED, HTTPError, host_error
from peili.mirror.plugins.interfaces import Context

RequestCheck: TypeAlias = Callable[[Scope], str | None]
"""Returns why a request is refused; None if it is not."""

ANY_HOST = "*"
_LOCALHOST = "localhost"


class RequestChecks:
    """Passes on the requests that pass all checks. Answers 403 to the others, and logs a warning for the first of them.

    Args:
        app: The app that receives the requests.
        checks: See `RequestCheck`.
        context: Its log receives the warning.
    """

    def __init__(self, app: ASGIApp, checks: Iterable[RequestCheck], context: Context) -> None:
        self._app = app
        self._checks = tuple(checks)
        self._context = context
        self._is_logged = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        problem = self._problem(scope) if scope["type"] == "http" else None
        if problem is None:
            await self._app(scope, receive, send)
            return
        if not self._is_logged:
            self._is_logged = True
            self._context.log.warning("refused a request to %s (later ones are not logged): %s", scope["path"], problem)
        error = HTTPError(403, DENIED, problem)
        await ResponseWriter(scope, send, self._context.limits.reader_timeout).error(error)

    def _problem(self, scope: Scope) -> str | None:
        return next((problem for check in self._checks if (problem := check(scope)) is not None), None)


def check_host(allowed: Iterable[str]) -> RequestCheck:
    """Return a check that refuses a foreign Host header.

    Allowed are loopback addresses, ``localhost``, and the address at which the request arrived. A request without a
    host passes, because a browser always sends one. So does one with a malformed header, which the app refuses itself.

    Args:
        allowed: Further host names and addresses, without a port. `ANY_HOST` allows all.
    """
    names = frozenset(each.lower() for each in allowed)
    last_allowed: tuple[str, object] | None = None  # a runtime sends the same Host again and again

    def check(scope: Scope) -> str | None:
        nonlocal last_allowed
        header = next((value for name, value in scope["headers"] if name == b"host"), b"").decode("latin-1").strip()
        if (header, scope.get("server")) == last_allowed:
            return None
        host = _host_of(header)
        is_allowed = not header or ANY_HOST in names or host in names or host == _LOCALHOST
        if is_allowed or _is_address_of(host, scope):
            last_allowed = header, scope.get("server")
            return None
        if host_error(scope) is not None:
            return None
        return f"the Host {header[:80]!a} is not a name of the local door; local.allow_hosts lists its names"

    return check


def check_no_browser(scope: Scope) -> str | None:
    """Refuse a request that a browser has sent."""
    for name, _ in scope["headers"]:
        if name in {b"origin", b"sec-fetch-site"}:
            return f"the local door is not for browsers, so {name.decode()} is refused"
    return None


def check_same_site(scope: Scope) -> str | None:
    """Refuse a request that a browser has sent for a page of another site."""
    headers = dict(scope["headers"])
    origin = headers.get(b"origin")
    is_foreign = origin is not None and _netloc(origin) != headers.get(b"host", b"").decode("latin-1").strip().lower()
    if is_foreign or headers.get(b"sec-fetch-site") == b"cross-site":
        return "a page of another site has caused this request"
    return None


def _netloc(origin: bytes) -> str:
    try:
        return urlsplit(origin.decode("latin-1").strip()).netloc.lower()
    except ValueError:
        return ""


def _host_of(header: str) -> str:
    """Return the host in a Host header without its port, in lower case; empty if there is none."""
    try:
        return (urlsplit(f"//{header}").hostname or "").removesuffix(".")
    except ValueError:
        return ""


def _is_address_of(host: str, scope: Scope) -> bool:
    """Return whether `host` is a loopback address, or the address at which the request arrived."""
    try:
        address = ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None) or address
    server = scope.get("server")
    return bool(mapped.is_loopback) or (server is not None and server[0].removeprefix("::ffff:") == str(mapped))
