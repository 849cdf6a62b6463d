"""Checks what the runtime keeps of bytes that the relay passed on and could not verify, and removes it if it is wrong.

A transfer that ends early leaves an ingest with unverified bytes. The runtime may fetch the rest from upstream, where
the relay sees nothing. If a byte is wrong, it notices that only when it commits the content. containerd then keeps the
ingest, and every later pull fails at once, until somebody removes it. The same holds for content whose parts the
runtime fetches in parallel.
"""

from __future__ import annotations

import asyncio
from functools import partial

from peili.mirror.errors import Aborted, NotFound, Unavailable
from peili.mirror.oci.references import Digest
from peili.mirror.peer_api.received import BLOCK, ReceivedBytes
from peili.mirror.plugins.calls import call
from peili.mirror.plugins.content import Content
from peili.mirror.relay.blame import IN_FLIGHT
from peili.mirror.relay.ingest import discard_ingest, seed_from
from peili.mirror.relay.state import RelayState
from peili.mirror.relay.tracing import ask_suspects, trace_wrong_byte
from peili.mirror.relay.verify import DigestMismatch, Verifier

_MAX_CHECKS = 64
_COMMIT_TIME = 0.1
"""Seconds in which a runtime commits whole content. After that, it is hashed here, which does no harm."""
_LONGEST = 3600.0
"""Seconds after which an ingest is no longer followed. Its store gives it up long before if nobody writes it."""


def check_later(digest: Digest, state: RelayState) -> None:
    """Check the ingest of `digest` when it is whole, in the background, if the runtime may have wrong bytes of it.

    Nothing is done if such a check is under way, or if too many are.

    Args:
        digest: The content.
        state: The relay's state. Its `Blame` knows who sent bytes that are not verified.
    """
    is_doubtful = state.blame.suspects(digest) or state.blame.is_poisoned(digest)
    if is_doubtful and digest not in state.checked and len(state.checked) < _MAX_CHECKS:
        state.checked.add(digest)
        state.background.start(_check(digest, state))


async def _check(digest: Digest, state: RelayState) -> None:
    """Wait until the ingest is whole. Remove it if it is wrong, and find out who sent the wrong byte."""
    opening = partial(state.context.store.open, digest, partial=True)
    verifier = Verifier(digest)
    try:
        content = await call(opening, state.context, "the store", about=digest, allowed=(NotFound, Unavailable))
        async with asyncio.timeout(_LONGEST), content:
            if not await _is_left_whole(content) or not await seed_from(content, verifier, content.available):
                return
        verifier.finish()
    except DigestMismatch:
        _note_wrong(digest, verifier, state)
        await discard_ingest(state, digest)
    except (NotFound, Aborted, Unavailable, TimeoutError):
        pass  # it has gone, or nobody completes it now
    finally:
        state.checked.discard(digest)


async def _is_left_whole(content: Content) -> bool:
    """Wait until all bytes are there. Return whether the runtime has not committed them a moment later.

    Raises:
        Aborted: They will not come.
    """
    while not content.complete and (content.size is None or content.available < content.size):
        await content.wait(content.available)
    try:
        async with asyncio.timeout(_COMMIT_TIME):
            await content.wait(content.available)
    except (TimeoutError, Aborted):  # `Aborted` if its writer has left
        pass
    return not content.complete


def _note_wrong(digest: Digest, verifier: Verifier, state: RelayState) -> None:
    """Blame those who may have sent the wrong byte, and let other hosts know that these bytes are wrong."""
    suspects, attempts = state.blame.suspects(digest), state.incoming.received.get(digest)
    for peer_id in sorted(suspects - {IN_FLIGHT}):
        state.blame.doubt(digest, peer_id)
        state.log.warning("%s: peer %s may have sent wrong bytes; it is asked last", digest, peer_id)
    state.background.start(ask_suspects(digest, suspects - {IN_FLIGHT}, verifier.count, state))
    if IN_FLIGHT not in suspects:
        return
    state.log.warning("%s: bytes that were read in flight are wrong; now only whole holders are asked", digest)
    state.blame.bar_in_flight(digest, state.limits.quarantine_ttl)
    if attempts:
        last = attempts[-1]
        sources = [*last.sources, (len(last.prefixes) * BLOCK, None)]  # the runtime has fetched the rest
        received = ReceivedBytes(tuple(verifier.prefixes), sources, is_wrong=True)
        state.incoming.received.add(digest, received)
        state.start_trace(digest, trace_wrong_byte(digest, received, (), state))
