"""Lists and watches objects of a Kubernetes API server, as the service account of this pod."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import ssl
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import httpx

from peili.mirror import PeiliError

_PAGE = 100  # objects in one answer to a list
_MAX_PAGES = 100
_MAX_ANSWER = 64 << 20  # bytes; an object has at most 1.5 MiB
_MAX_LINE = 8 << 20  # bytes of one event of a watch
_MAX_MESSAGE = 64 << 10  # bytes of an answer that is an error
_WATCH_SECONDS = (240, 300)  # after a time between these the server ends a watch, and the next one begins
_GONE = 410
_METADATA_ONLY = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
# A server that is gone without a word is noticed after half a minute.
_KEEP_ALIVE = [
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 15),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
]


class ApiFailed(PeiliError):
    """The API server did not do what it was asked for. The message is one line that says why."""


class VersionGone(ApiFailed):
    """The server does not know any more what has changed since a version. The objects have to be listed again."""


class WatchBroken(ApiFailed):
    """The connection of a watch broke. Load balancers and restarts of the server do that, so it is not a fault."""


@dataclass(frozen=True, slots=True)
class ListedObjects:
    """The objects of a list.

    Attributes:
        items: The objects.
        version: The version of the list, from which a watch continues.
    """

    items: list[dict[str, Any]]
    version: str


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """A change of one object.

    Attributes:
        kind: ``ADDED``, ``MODIFIED``, ``DELETED``, or ``BOOKMARK``, which has no object but a new version.
        item: The object, as it is now, or as it was when it was deleted.
        version: The version from which a watch continues after this event.
    """

    kind: str
    item: dict[str, Any]
    version: str


class ClusterApi:
    """The API server. The token and the CA are read for each connection, because the kubelet replaces them.

    Args:
        url: The URL of the server. With ``http``, for example of ``kubectl proxy``, no token is sent.
        credentials: The folder with the files ``token``, ``ca.crt`` and ``namespace``.
        timeout: Seconds until a request fails that gets no answer.
    """

    def __init__(self, url: str, credentials: Path, timeout: float) -> None:
        self._url = url
        self._credentials = credentials
        self._timeout = timeout

    async def namespace(self) -> str:
        """Return the namespace of this pod. Raises ApiFailed."""
        return await asyncio.to_thread(_read, self._credentials / "namespace")

    @asynccontextmanager
    async def connect(self) -> AsyncGenerator[ApiConnection, None]:
        """Yield a connection with the current token, for some requests after each other.

        Raises:
            ApiFailed: The credentials can't be read. Also if a request in the block gets no answer.
        """
        is_plain = self._url.startswith("http:")
        context, headers = (None, {}) if is_plain else await asyncio.to_thread(_read_credentials, self._credentials)
        transport = httpx.AsyncHTTPTransport(
            verify=context or False,  # there is no TLS to verify without a context
            trust_env=False,
            socket_options=_KEEP_ALIVE,
        )
        try:
            async with httpx.AsyncClient(
                base_url=self._url, headers=headers, transport=transport, timeout=self._timeout, trust_env=False
            ) as client:
                yield ApiConnection(client, self._timeout)
        except (httpx.HTTPError, ssl.SSLError) as error:  # httpx passes on an alert after the handshake
            raise ApiFailed(f"{self._url}: {' '.join(str(error).split()) or type(error).__name__}") from error


class ApiConnection:
    """A connection to the API server. `ClusterApi.connect` creates it. For use by one task."""

    def __init__(self, client: httpx.AsyncClient, timeout: float) -> None:
        self._client = client
        self._timeout = timeout

    async def list(self, path: str, params: Mapping[str, str], *, metadata_only: bool = False) -> ListedObjects:
        """List objects, page by page.

        Args:
            path: The path of the collection.
            params: Parameters that select objects.
            metadata_only: Whether the server leaves out all of each object but its metadata.

        Raises:
            ApiFailed: The server refuses.
        """
        items: list[dict[str, Any]] = []
        page = {**params, "limit": str(_PAGE)}
        headers = {"Accept": _METADATA_ONLY if metadata_only else "application/json"}
        for _ in range(_MAX_PAGES):
            async with self._client.stream("GET", path, params=page, headers=headers) as response:
                await _check(response, path)
                body = await _read_body(response, _MAX_ANSWER)
            answer = await asyncio.to_thread(_parse, body)
            items += _objects(answer.get("items") or [])
            metadata = _object(answer.get("metadata"))
            if not metadata.get("continue"):
                return ListedObjects(items, str(metadata.get("resourceVersion", "")))
            page["continue"] = str(metadata["continue"])
        raise ApiFailed(f"{path} has more than {_PAGE * _MAX_PAGES} objects")

    async def watch(self, path: str, params: Mapping[str, str], version: str) -> AsyncGenerator[WatchEvent, None]:
        """Yield each change since `version`, until the server ends the watch, which it does after a few minutes.

        Raises:
            VersionGone: The server has forgotten `version`.
            WatchBroken: The connection broke.
            ApiFailed: The server refuses.
        """
        seconds = random.randint(*_WATCH_SECONDS)  # noqa: S311 - spreads hosts in time, no secret
        query = {**params, "watch": "true", "allowWatchBookmarks": "true", "timeoutSeconds": str(seconds)}
        query["resourceVersion"] = version
        timeout = httpx.Timeout(self._timeout, read=seconds + self._timeout)
        async with self._client.stream("GET", path, params=query, timeout=timeout) as response:
            await _check(response, path)
            try:
                async for line in _lines(response):
                    yield _event(_parse(line))
            except httpx.TransportError as error:
                raise WatchBroken(f"the watch of {path} broke: {error!r}") from error


def _read_credentials(folder: Path) -> tuple[ssl.SSLContext, dict[str, str]]:
    headers = {"Authorization": f"Bearer {_read(folder / 'token')}"}
    try:
        context = ssl.create_default_context(cafile=folder / "ca.crt")
    except OSError as error:  # ssl.SSLError is one
        raise ApiFailed(f"{folder / 'ca.crt'}: {error.strerror or error}") from error
    # Python 3.13 made this a default. The CAs of many clusters lack what it demands.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context, headers


def _read(file: Path) -> str:
    try:
        text = file.read_text().strip()
    except (OSError, ValueError) as error:
        raise ApiFailed(f"{file}: {getattr(error, 'strerror', None) or error}") from error
    if not text.isprintable() or not text:
        raise ApiFailed(f"{file}: not one line of text")
    return text


async def _check(response: httpx.Response, path: str) -> None:
    """Raise the right error for an answer that is none."""
    if response.status_code == 200:
        return
    body = await _read_body(response, _MAX_MESSAGE)
    try:
        message = str(_parse(body).get("message", ""))
    except ApiFailed:
        message = ""
    raise _failure(response.status_code, message or f"{path} was not found")


def _failure(status: int, message: str) -> ApiFailed:
    text = f"it answers {status}: {' '.join(message.split())[:300]}"
    return VersionGone(text) if status == _GONE else ApiFailed(text)


async def _lines(response: httpx.Response) -> AsyncGenerator[bytes, None]:
    """Yield the lines of an answer as they arrive, without empty ones."""
    rest = b""
    async for data in response.aiter_bytes():
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            if line.strip():
                yield line
        if len(rest) > _MAX_LINE:
            raise ApiFailed(f"an event has more than {_MAX_LINE >> 20} MiB")


async def _read_body(response: httpx.Response, most: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    async for data in response.aiter_bytes():
        parts.append(data)
        size += len(data)
        if size > most:
            raise ApiFailed(f"an answer has more than {most >> 10} KiB")
    return b"".join(parts)


def _parse(text: bytes) -> dict[str, Any]:
    try:
        return _object(json.loads(text))
    except (ValueError, RecursionError) as error:
        raise ApiFailed("an answer is not JSON") from error


def _event(event: dict[str, Any]) -> WatchEvent:
    kind, item = str(event.get("type")), _object(event.get("object"))
    if kind == "ERROR":
        raise _failure(item.get("code") or 500, str(item.get("message", "")))
    version = str(_object(item.get("metadata")).get("resourceVersion", ""))
    if not version:
        raise ApiFailed("an event has no resourceVersion")
    return WatchEvent(kind, item, version)


def _object(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ApiFailed("an answer has something else where an object is expected")
    return cast("dict[str, Any]", value)


def _objects(values: object) -> list[dict[str, Any]]:
    if not isinstance(values, list):
        raise ApiFailed("an answer has something else where a list is expected")
    return [_object(each) for each in cast("list[object]", values)]
