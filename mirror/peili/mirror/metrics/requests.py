"""What is known about one request to a door, while it is answered and afterwards. Metrics, logs and /status read it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from starlette.types import Message

from peili.mirror.oci.references import Digest

_NO_SENDERS: Mapping[str, int] = {}


@dataclass(slots=True, eq=False)
class RequestRecord:
    """One request and its response.

    Attributes:
        door: The name of the door.
        endpoint: The endpoint of the API. The door sets it.
        is_get: Whether the response may have a body.
        client: The address of the client, or the id that a peer states.
        repository: Registry and repository; empty before the request was parsed.
        tag: The tag that was requested.
        digest: The content that was requested, or that the tag means.
        is_manifest: Whether a manifest was requested.
        source: Where the content comes from. The door sets it; it is empty for other responses than content.
        senders: The peers that sent the content so far, each with its number of bytes; the current one is the last.
        status: The status of the response; None if there was no response.
        length: The Content-Length of the response.
        sent: The bytes of content that were sent so far.
        is_wrong: Whether bytes that were sent turned out to be wrong.
        is_finished: Whether the response was sent to its end.
        started: When the request arrived, by `time.monotonic`.
    """

    door: str
    endpoint: str
    is_get: bool = True
    client: str = ""
    repository: str = ""
    tag: str = ""
    digest: Digest | None = None
    is_manifest: bool = False
    source: str = ""
    senders: Mapping[str, int] = field(default_factory=lambda: _NO_SENDERS)
    status: int | None = None
    length: int = 0
    sent: int = 0
    is_wrong: bool = False
    is_finished: bool = False
    started: float = field(default_factory=time.monotonic)

    def start(self, message: Message) -> None:
        """Note the start message of the response."""
        self.status = message["status"]
        self.length = next((int(value) for name, value in message["headers"] if name == b"content-length"), 0)

    @property
    def has_content(self) -> bool:
        """Whether the body of the response is content, and not an error or a list."""
        return self.source != "" and self.status in {200, 206}

    @property
    def is_cut(self) -> bool:
        """Whether the response was started and not finished."""
        return self.status is not None and not self.is_finished

    @property
    def answer(self) -> str:
        """How the request was answered, in a word for the metrics.

        ``store`` or ``peer``: with content from there. ``ok``: with something else. ``missing``: 404. ``refused``:
        another status from 400 to 499. ``failed``: 500 or more. ``cut``: not to the end. ``none``: not at all.
        """
        if self.status is None:
            return "none"
        if self.is_cut:
            return "cut"
        if self.status < 400:
            return self.source if self.has_content else "ok"
        if self.status == 404:
            return "missing"
        return "refused" if self.status < 500 else "failed"
