"""Requests of http URLs.

By default, httpx reads all certificate authorities for each client, which takes 50 ms of CPU time. And it waits for an
answer for only five seconds.
"""

from __future__ import annotations

import ssl
from typing import Any

import httpx
from tests.support.waiting import WAIT

NO_AUTHORITIES = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""It trusts nobody, so no https URL can be opened with it: for `verify` of httpx."""


def plain_client(*, timeout: float | httpx.Timeout = WAIT, **options: Any) -> httpx.AsyncClient:
    """Return a client with these options of httpx."""
    return httpx.AsyncClient(verify=NO_AUTHORITIES, timeout=timeout, **options)


def plain_get(url: str, *, timeout: float | httpx.Timeout = WAIT, **options: Any) -> httpx.Response:
    """Send a request with these options of httpx. This call blocks."""
    return httpx.get(url, verify=NO_AUTHORITIES, timeout=timeout, **options)
