"""What the questions of the resolver ``upstream`` have in common: who asks, and what becomes of a challenge."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TypeVar

from peili.mirror.errors import AuthorizationRequired
from peili.mirror.oci.requests import Requester
from peili.mirror.support.deadlines import Deadline
from peili.mirror.upstream.answers import Challenged, Unreachable
from peili.mirror.upstream.client import UpstreamClient

_T = TypeVar("_T")

STALE = '110 - "Response is Stale", 111 - "Revalidation Failed"'
"""The Warning header of an answer that the registry has not confirmed (RFC 7234, 5.5)."""

LATELY = 2.0
"""If a registry has answered anything within this many seconds, it is there, and a challenge of it is of use."""


async def without_rights(
    upstream: UpstreamClient, registry: str, repository: str, within: float
) -> Challenged | Unreachable | None:
    """Return how a registry answers requests without rights; None if it has to be asked.

    Most registries let nobody in without a token. To learn that from a real question would cost one more.

    Args:
        upstream: Asks registries.
        registry: The registry.
        repository: The repository.
        within: If the registry has not answered anything for this many seconds, it is asked whether it is there.
    """
    challenge = await upstream.probe(registry, within)
    if challenge is None or isinstance(challenge, Unreachable):
        return challenge
    return Challenged(challenge.for_repository(repository))


async def in_time(asking: Awaitable[_T], seconds: float) -> _T | Unreachable:
    """Return the answer of a registry, or `Unreachable` after this many seconds, however many requests it takes."""
    try:
        async with Deadline(seconds):
            return await asking
    except TimeoutError:
        return Unreachable(f"no answer in {seconds:g} s")


def demand_rights(answer: object, requester: Requester) -> None:
    """Raise AuthorizationRequired if `answer` is a challenge to a requester that can get a token, or a new one.

    If the registry refuses a token that has not expired, the requester has to find out there what is wrong.
    """
    if isinstance(answer, Challenged):
        challenge = answer.challenge
        is_expired = not challenge.is_basic and challenge.parameters.get("error") == "invalid_token"
        if requester.authorization is None or is_expired:
            raise AuthorizationRequired(str(challenge))
