"""Keeps what may be secret out of the logs of httpx and httpcore, which belong to the host agent.

httpx logs each URL at INFO, and an address to which a registry redirects is often signed: who knows it may read the
blob. httpcore logs the headers of each response at DEBUG.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx
from typing_extensions import override

from peili.mirror.upstream.destinations import Trace


class _UnloggedURL(httpx.URL):
    """A URL that shows only its origin. It is requested as it is."""

    @override
    def __str__(self) -> str:
        return f"{self.scheme}://{self.netloc.decode('ascii')}"

    @override
    def __repr__(self) -> str:
        return f"URL({str(self)!r})"


def hide_url(request: httpx.Request) -> httpx.Request:
    """Let logs show only the origin of the URL of `request`, and return it."""
    request.url = _UnloggedURL(request.url)
    return request


def hiding_results(trace: Trace | None = None) -> Trace:
    """Return a trace for httpcore that keeps the results of all steps out of its log. It calls `trace` before."""

    async def hide(event: str, info: Mapping[str, Any]) -> None:
        if trace is not None:
            await trace(event, info)
        if isinstance(info, dict) and not event.endswith(".started"):  # what is started gets its arguments from `info`
            info.clear()

    return hide
