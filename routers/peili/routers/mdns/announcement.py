"""Decides at which addresses this host is announced."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

from peili.mirror import IDENTITY_HEADER, Context, Peer, PeiliError
from peili.routers.mdns.interfaces import own_addresses
from peili.routers.mdns.service import parse_address

_MAX_CANDIDATES = 16


@dataclass(frozen=True, slots=True)
class Announcement:
    """What is announced of this host.

    Attributes:
        peer: This host, with URLs that other hosts on the network can use. Those may have a host name.
        addresses: The addresses to announce if the URLs have host names.
    """

    peer: Peer
    addresses: Sequence[str]


async def find_announcement(context: Context, this_host: Peer, addresses: Sequence[str]) -> Announcement | None:
    """Return what to announce; None if other hosts can't reach this host.

    Loopback is announced only on loopback. A host that had no other address when it started knows no other URL; then it
    is announced at those of its addresses where its peer door answers. A host without a default route knows a URL for
    each of its addresses; then it is announced at those on the used interfaces where its peer door answers.

    Args:
        context: The router's context.
        this_host: This host, with the URLs at which its peer door answers.
        addresses: This host's addresses on the interfaces that are used.
    """
    outside = without_loopback(addresses)
    if not outside:
        return Announcement(this_host, addresses)
    urls = tuple(each for each in this_host.urls if not _is_loopback(urlsplit(each).hostname or ""))
    if not urls and this_host.urls:
        urls = tuple(_with_host(this_host.urls[0], each) for each in outside if not _needs_scope(each))
        urls = await _answering(context, this_host, urls)
    elif len(urls) > 1:
        at_own = [each for each in urls if urlsplit(each).hostname in own_addresses()]
        used = await _answering(context, this_host, [each for each in at_own if urlsplit(each).hostname in outside])
        urls = tuple(each for each in urls if each in used or each not in at_own) or urls
    return Announcement(replace(this_host, urls=urls), outside) if urls or not this_host.urls else None


def without_loopback(addresses: Iterable[str]) -> list[str]:
    """Return the addresses that other hosts can reach."""
    return [each for each in addresses if not _is_loopback(each)]


async def _answering(context: Context, this_host: Peer, urls: Sequence[str]) -> tuple[str, ...]:
    """Return those of the first `urls` at which this host's own peer door answers."""
    candidates = urls[:_MAX_CANDIDATES]
    answers = await asyncio.gather(*(_answers(context, replace(this_host, urls=(url,))) for url in candidates))
    return tuple(url for url, is_right in zip(candidates, answers, strict=True) if is_right)


async def _answers(context: Context, this_host: Peer) -> bool:
    """Return whether this host's own peer door answers at the URL of `this_host`."""
    try:
        answer = await context.client.head(this_host, "/v2/", timeout=context.limits.lookup_timeout)
    except (PeiliError, TimeoutError):
        return False
    return answer.header(IDENTITY_HEADER) == this_host.id


def _is_loopback(host: str) -> bool:
    address = parse_address(host)
    return host == "localhost" if address is None else address.is_loopback


def _needs_scope(host: str) -> bool:
    return ":" in host and (address := parse_address(host)) is not None and address.is_link_local


def _with_host(url: str, host: str) -> str:
    parts = urlsplit(url)
    port = f":{parts.port}" if parts.port else ""
    return parts._replace(netloc=(f"[{host}]" if ":" in host else host) + port).geturl()
