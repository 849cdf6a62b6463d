"""What a request asks for, which requests are refused before they cost anything, and the error responses. No I/O.

The API is the pull part of the OCI distribution spec. The registry of a request comes from ``?ns=`` (containerd sends
it), else from the `OCI-Namespace` header, else from a leading path component that is a host name (some runtimes send
neither), else from a default.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from urllib.parse import parse_qsl, quote

from starlette.types import Scope

from peili.mirror.limits import Limits
from peili.mirror.oci.references import Digest, is_registry, is_repository, is_tag, looks_like_registry

NAME_INVALID = "NAME_INVALID"
NAME_UNKNOWN = "NAME_UNKNOWN"
DIGEST_INVALID = "DIGEST_INVALID"
MANIFEST_INVALID = "MANIFEST_INVALID"
MANIFEST_UNKNOWN = "MANIFEST_UNKNOWN"
BLOB_UNKNOWN = "BLOB_UNKNOWN"
SIZE_INVALID = "SIZE_INVALID"
DENIED = "DENIED"
UNAUTHORIZED = "UNAUTHORIZED"
UNSUPPORTED = "UNSUPPORTED"
TOOMANYREQUESTS = "TOOMANYREQUESTS"

CHECKED = "checked"
"""In the query of a request to a peer: ``1`` if the host that asks has found out that its requester may have the
content, because the registry said so. Holders of covered content answer no other request for it.
"""

LIMIT_OF_STATUS = {414: "path_length", 431: "header_count"}
"""The statuses that mean that a limit was reached, each with the name of the limit in `Limits`."""

_ENCODED_SEPARATORS = (b"%2f", b"%5c", b"%00")
_HOST = re.compile(
    rb"(?:\[[A-Za-z0-9:.%_~!$&'()*+,;=-]+\]|(?:[A-Za-z0-9._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*)(?::[0-9]*)?", re.ASCII
)
"""RFC 9110, section 7.2: host and port as in a URI. The host may be empty. An address in brackets is not parsed."""


class HTTPError(Exception):
    """Ends a request with an error response.

    Args:
        status: The HTTP status code.
        code: One of the error codes above.
        message: The message for people.
        headers: Headers in addition to those of every error response.
    """

    def __init__(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.headers = dict(headers or {})

    def body(self) -> bytes:
        """Return the JSON document of the response."""
        return json.dumps({"errors": [{"code": self.code, "message": str(self)}]}).encode()


@dataclass(frozen=True, slots=True)
class Requester:
    """Who sent a request, as far as a registry can tell.

    Attributes:
        authorization: The Authorization header; None without one. It is not kept, not logged, and not sent to peers.
    """

    authorization: str | None = field(default=None, repr=False)


class Endpoint(Enum):
    """The endpoints of the API. The values are the path components of the spec."""

    BASE = "base"
    MANIFEST = "manifests"
    BLOB = "blobs"
    TAGS = "tags"
    REFERRERS = "referrers"


@dataclass(frozen=True, slots=True)
class Target:
    """What a request asks for.

    Attributes:
        endpoint: The endpoint of the API.
        registry: The registry; None if the request names none and there is no default.
        repository: The repository; empty for `Endpoint.BASE`.
        digest: The digest of a blob, of a manifest without a tag, or of what the referrers refer to.
        tag: The tag of a manifest.
        is_registry_in_path: Whether only the path names the registry. Such a runtime may take a manifest from a mirror
            and then never go upstream for what is missing.
        is_checked: Whether this host has found out that the requester may have the content; see `CHECKED`.
    """

    endpoint: Endpoint
    registry: str | None = None
    repository: str = ""
    digest: Digest | None = None
    tag: str | None = None
    is_registry_in_path: bool = False
    is_checked: bool = False

    @property
    def peer_path(self) -> str:
        """Path and query of the same target at a peer door, relative to the base URL of the peer."""
        query = f"ns={quote(self.registry, safe='')}" if self.registry else ""
        query += f"&{CHECKED}=1" if self.is_checked else ""
        repository = self.repository
        first, slash, _ = repository.partition("/")
        if self.registry and slash and _repeats_registry(first, self.registry):
            repository = f"{self.registry}/{repository}"  # so that the peer does not remove its first component
        last = "list" if self.endpoint is Endpoint.TAGS else self.digest or self.tag
        return f"/v2/{repository}/{self.endpoint.value}/{last}{'?' if query else ''}{query.removeprefix('&')}"

    @property
    def name(self) -> str:
        """Registry, repository and tag or digest, for messages."""
        registry = f"{self.registry}/" if self.registry else ""
        suffix = f":{self.tag}" if self.tag else f"@{self.digest}" if self.digest else ""
        return f"{registry}{self.repository}{suffix}"


def api_path(path: str, root_path: str) -> str:
    """Return the part of `path` after ``/v2``, for a door that is mounted at `root_path`.

    If the mount itself ends in ``/v2``, nothing else is removed: a second ``v2`` belongs to the repository.

    Args:
        path: The path of the request, including `root_path`.
        root_path: The ASGI root path; empty if the door is not mounted.

    Raises:
        HTTPError: 404, `path` is not below ``/v2``.
    """
    inner = path[len(root_path) :] if root_path and path.startswith(root_path) else path
    if root_path.endswith("/v2"):
        return inner
    if inner == "/v2" or inner.startswith("/v2/"):
        return inner[len("/v2") :]
    raise HTTPError(404, UNSUPPORTED, "not part of the API; paths begin with /v2/")


def parse_query(scope: Scope) -> dict[str, str]:
    """Return the parameters of the query. If a name occurs several times, the last value counts."""
    return dict(parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True))


def parse_target(path: str, *, ns: str | None, default_registry: str | None) -> Target:
    """Parse a path.

    Args:
        path: The path after ``/v2``, see `api_path`.
        ns: The registry that the query or the header names.
        default_registry: The registry if neither `ns` nor the path names one.

    Raises:
        HTTPError: 404, the path is not part of the API; 400, a name, tag or digest is malformed.
    """
    if path in {"", "/"}:
        return Target(Endpoint.BASE)
    components = path.split("/")[1:]
    if len(components) < 2:
        components = ["", "", ""]
    *name, kind, last = components
    if (kind, last) == ("tags", "list"):
        return _parse_name(Endpoint.TAGS, name, ns, default_registry)
    if kind == "manifests":
        target = _parse_name(Endpoint.MANIFEST, name, ns, default_registry)
        if ":" in last:
            return replace(target, digest=_digest(last))
        if not is_tag(last):
            raise HTTPError(400, MANIFEST_INVALID, f"neither a tag nor a digest: {last[:80]!a}")
        return replace(target, tag=last)
    if kind == "referrers":
        return replace(_parse_name(Endpoint.REFERRERS, name, ns, default_registry), digest=_digest(last))
    if kind == "blobs":
        return replace(_parse_name(Endpoint.BLOB, name, ns, default_registry), digest=_digest(last))
    raise HTTPError(
        404, UNSUPPORTED, "not part of the API of a mirror; it has manifests, blobs, tags/list and referrers"
    )


def _parse_name(endpoint: Endpoint, name: list[str], ns: str | None, default: str | None) -> Target:
    if ns is not None and not is_registry(ns):
        raise HTTPError(400, NAME_INVALID, f"ns is not the host name of a registry: {ns[:80]!a}")
    registry, is_in_path = ns, False
    if len(name) > 1 and (looks_like_registry(name[0]) if ns is None else _repeats_registry(name[0], ns)):
        registry, *name = name  # some clients name the registry in `ns` and in the path
        is_in_path = ns is None
    repository = "/".join(name)
    if not is_repository(repository):
        raise HTTPError(400, NAME_INVALID, f"not a repository name: {repository[:80]!a}")
    registry = registry if registry is not None else default
    return Target(endpoint, registry, repository, is_registry_in_path=is_in_path)


def _repeats_registry(first: str, ns: str) -> bool:
    """Return whether `first`, the first component of a name, repeats the registry `ns`. A plain word never does."""
    return looks_like_registry(first) and first.lower() == ns.lower()


def _digest(text: str) -> Digest:
    try:
        return Digest(text)
    except ValueError as error:
        raise HTTPError(400, DIGEST_INVALID, str(error)) from error


def check_request(scope: Scope, limits: Limits) -> None:
    """Refuse requests that clients of a read-only mirror do not send.

    Args:
        scope: The ASGI scope of the request.
        limits: See `check_head`.

    Raises:
        HTTPError: 405 for other methods than GET and HEAD, 413 for a request with a body, 400 for an encoded separator
            in the path, and the errors of `check_head`.
    """
    if scope["method"] not in {"GET", "HEAD"}:
        raise HTTPError(405, UNSUPPORTED, "a mirror is read only; use GET or HEAD", {"Allow": "GET, HEAD"})
    check_head(scope, limits)
    raw: bytes = scope.get("raw_path") or b""
    if b"%" in raw and any(separator in raw.lower() for separator in _ENCODED_SEPARATORS):
        raise HTTPError(400, NAME_INVALID, "encoded separator in the path")
    for name, value in scope["headers"]:
        if name == b"transfer-encoding" or (name == b"content-length" and value.strip() not in {b"0", b""}):
            raise HTTPError(413, SIZE_INVALID, "requests with a body are not accepted", {"Connection": "close"})


def check_head(scope: Scope, limits: Limits) -> None:
    """Refuse requests with a malformed or too large head.

    Args:
        scope: The ASGI scope of the request.
        limits: ``path_length`` and ``header_count`` are checked.

    Raises:
        HTTPError: 400 for HTTP/0.9 and for a wrong Host header, 414 for a long path or query, 431 for many headers.
    """
    if scope.get("http_version") == "0.9":  # a response in HTTP/0.9 has no head, and so no status
        raise HTTPError(400, UNSUPPORTED, "HTTP/0.9 is not supported")
    if (problem := host_error(scope)) is not None:
        raise HTTPError(400, UNSUPPORTED, problem, {"Connection": "close"})
    if max(len(scope.get("raw_path") or b""), len(scope["path"])) > limits.path_length:
        raise HTTPError(414, NAME_INVALID, f"path longer than {limits.path_length} bytes")
    if len(scope.get("query_string", b"")) > limits.path_length:
        raise HTTPError(414, NAME_INVALID, f"query longer than {limits.path_length} bytes")
    if len(scope["headers"]) > limits.header_count:
        raise HTTPError(431, UNSUPPORTED, f"more than {limits.header_count} headers")


def host_error(scope: Scope) -> str | None:
    """Return why the Host header is wrong (RFC 9112, section 3.2); None if it is right.

    A request over HTTP/2 may have two equal Host headers: the server may have added one.
    """
    hosts = [value.strip(b" \t") for name, value in scope["headers"] if name == b"host"]
    version = scope.get("http_version")
    if not hosts:
        return "the request has no Host header" if version == "1.1" else None
    if len(hosts) > 1 and (version in {"1.0", "1.1"} or len(set(hosts)) > 1):
        return "the request has more than one Host header"
    return None if _HOST.fullmatch(hosts[0]) else "the Host header is malformed"
