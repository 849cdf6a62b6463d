"""Refuses what no client of a mirror sends, before it costs anything."""

from __future__ import annotations

from starlette.types import Scope

from peili.mirror.limits import Limits
from peili.mirror.oci.refusal import NAME_INVALID, SIZE_INVALID, UNSUPPORTED, HTTPError
from peili.mirror.server.host_header import host_error

_ENCODED_SEPARATORS = (b"%2f", b"%5c", b"%00")


def check_request(scope: Scope, limits: Limits) -> None:
    """For a door, which is read only. Raises HTTPError (4xx)."""
    if scope["method"] not in {"GET", "HEAD"}:
        raise HTTPError(405, UNSUPPORTED, "a mirror is read only; use GET or HEAD", {"Allow": "GET, HEAD"})
    check_head(scope, limits)
    raw: bytes = scope.get("raw_path") or b""
    if b"%" in raw and any(separator in raw.lower() for separator in _ENCODED_SEPARATORS):
        raise HTTPError(400, NAME_INVALID, "encoded separator in the path")
    if _has_body(scope):
        raise HTTPError(413, SIZE_INVALID, "requests have no body here", {"Connection": "close"})


def check_head(scope: Scope, limits: Limits) -> None:
    """What is too much or malformed, whatever is asked. Raises HTTPError (4xx)."""
    if scope.get("http_version") == "0.9":  # its answers have no head, and so no status
        raise HTTPError(400, UNSUPPORTED, "HTTP/0.9 is not spoken here")
    if (problem := host_error(scope)) is not None:
        raise HTTPError(400, UNSUPPORTED, problem, {"Connection": "close"})
    if max(len(scope.get("raw_path") or b""), len(scope["path"])) > limits.path_length:
        raise HTTPError(414, NAME_INVALID, f"path longer than {limits.path_length} bytes")
    if len(scope.get("query_string", b"")) > limits.path_length:
        raise HTTPError(414, NAME_INVALID, f"query longer than {limits.path_length} bytes")
    if len(scope["headers"]) > limits.header_count:
        raise HTTPError(431, UNSUPPORTED, f"more than {limits.header_count} headers")


def _has_body(scope: Scope) -> bool:
    for name, value in scope["headers"]:
        if name == b"transfer-encoding" or (name == b"content-length" and value.strip() not in {b"0", b""}):
            return True
    return False
