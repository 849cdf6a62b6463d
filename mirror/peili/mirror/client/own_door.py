"""Finds out whether this host's own peer door answers."""

from __future__ import annotations

import logging
from collections.abc import Callable

from peili.mirror.client.client import PeerClient
from peili.mirror.errors import PeerUnavailable
from peili.mirror.limits import Limits
from peili.mirror.peer_api.peers import IDENTITY_HEADER, Peer
from peili.mirror.support.tasks import Backoff

_WARN_DELAY = 1.0
"""Seconds. When the delay between two tries is longer than this, a warning is logged once."""
_FIRST_DELAY = 0.05
"""Seconds after which our own peer door is tried again. The delay grows up to ``limits.backoff_max``."""


async def wait_until_listening(
    identity: Callable[[], Peer], client: PeerClient, limits: Limits, log: logging.Logger
) -> Peer:
    """Wait until this host's own peer door answers at one of its URLs. Never returns if there is no peer door.

    Args:
        identity: Returns this host as a peer, with URLs as soon as they are known.
        client: Sends a request to the peer door.
        limits: ``lookup_timeout`` bounds a try, ``backoff_max`` the delay between two tries.
        log: Receives one warning if the door does not answer for some seconds.

    Returns:
        This host as a peer.
    """
    backoff = Backoff(_FIRST_DELAY, limits.backoff_max)
    has_warned = False
    while True:
        peer = identity()
        if peer.urls:
            problem = await _find_problem(peer, client, limits.lookup_timeout)
            if problem is None:
                return peer
            if backoff.delay > _WARN_DELAY and not has_warned:
                has_warned = True
                urls = " or ".join(peer.urls)
                log.warning(
                    "this host is not advertised to peers until its own peer door answers at %s: %s", urls, problem
                )
        await backoff.sleep()


async def _find_problem(peer: Peer, client: PeerClient, timeout: float) -> str | None:
    """Return why other hosts cannot reach this host as `peer`; None if they can."""
    try:
        answer = await client.head(peer, "/v2/", timeout=timeout)
    except PeerUnavailable as error:
        return str(error)
    identity = answer.header(IDENTITY_HEADER)
    return None if identity == peer.id else f"another host answers there, with the id {identity or '(none)'}"
