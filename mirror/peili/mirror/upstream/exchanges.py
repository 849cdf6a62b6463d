"""One request to a registry and its response, as values. No I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

USER_AGENT = "peili"
"""The User-Agent of these requests. A local door does not ask a registry to answer them, so that they can't loop."""
MOST_CHECKS = 8
"""Registries that are checked at the same time for one purpose, besides all questions."""


class ExchangeFailed(Exception):
    """There was no response that can be used. The message says why, without addresses of redirects."""


class CannotAsk(ExchangeFailed):
    """This host can't ask: its files or settings can't be used, or a certificate is not accepted.

    The registry may be in order, and others may reach it.
    """


class UnusableReply(ExchangeFailed):
    """There was a response, but it can't be used. So the registry is there."""


class NotDialled(ExchangeFailed):
    """The registry is at an address at which none is connected to that only a request has named."""


class TooLarge(UnusableReply):
    """The body of the response is larger than allowed."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request.

    Attributes:
        method: HEAD or GET.
        url: The URL.
        headers: The headers that every host may see. Those of the registry's root are added at the origin of the root.
        authorization: The Authorization header, for the origin of `url` only.
        most: The largest body of the response in bytes; 0 if it is not read.
        stops_at_other_host: Return a redirect to another host as the reply.
    """

    method: str
    url: str
    headers: Mapping[str, str]
    authorization: str | None = field(repr=False)
    most: int
    stops_at_other_host: bool = False


@dataclass(frozen=True, slots=True)
class RegistryReply:
    """A response of a registry.

    Attributes:
        status: The status code.
        headers: The headers, with names in lower case. Equal ones are joined with a comma.
        challenges: The values of all WWW-Authenticate headers.
        body: The body; empty for HEAD.
        location: Where a redirect leads to that was not followed.
    """

    status: int
    headers: Mapping[str, str]
    challenges: Sequence[str] = ()
    body: bytes = b""
    location: str | None = None
