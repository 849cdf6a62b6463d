"""Reads and removes the runtime's ingest: the part of relayed content that the runtime has so far.

The store shows the ingest, and the relay itself fills it. Each function bounds its wait for the store. If the store
fails, the content counts as unknown.
"""

from __future__ import annotations

import asyncio
import logging

from peili.mirror.errors import Aborted, NotFound, Unavailable
from peili.mirror.limits import MIB
from peili.mirror.oci.ranges import Span
from peili.mirror.oci.references import Digest
from peili.mirror.plugins.calls import call
from peili.mirror.plugins.content import Content, read_into
from peili.mirror.plugins.interfaces import Store
from peili.mirror.relay.state import RelayState, TransferRequest
from peili.mirror.relay.verify import Unverified, Verifier
from peili.mirror.support.deadlines import Deadline
from peili.mirror.support.tasks import is_own_failure

_NOT_READ_BACK = "%s: relayed unverified: the bytes that the runtime has can't be read back%s"


async def ingest_size(state: RelayState, digest: Digest, deadline: float) -> int | None:
    """Return how many bytes the runtime expects `digest` to have.

    Args:
        state: The relay's state.
        digest: The content.
        deadline: The end of the whole wait, by the loop's clock.

    Returns:
        The size in bytes; None if the store does not state it within a quarter of the remaining time.
    """
    remaining = deadline - asyncio.get_running_loop().time()
    bound = Deadline(min(state.limits.first_byte_timeout, remaining / 4))
    try:
        async with bound, await state.context.store.open(digest, partial=True) as content:
            return content.size
    except (NotFound, Aborted, Unavailable):
        return None
    except BaseException as error:
        if not is_own_failure(error):
            raise
        if bound.expired():
            state.metrics.limited.add("first_byte_timeout")
        else:
            # For debugging only: this is the second call for the same request, and the door has logged the first one.
            state.log.debug("%s: the store can't tell the size", digest, exc_info=True)
        return None


async def may_resume(state: RelayState, digest: Digest, first: int) -> bool:
    """Return whether the runtime may have all bytes before `first`, and so reads the response to its end.

    Otherwise it fetches several parts in parallel, and closes the response early.

    Args:
        state: The relay's state.
        digest: The content.
        first: The first byte that the runtime wants.
    """
    if not state.verify or state.parallel.is_parallel(digest):
        return False
    try:
        async with (
            Deadline(state.limits.first_byte_timeout / 4),
            await state.context.store.open(digest, partial=True) as content,
        ):
            return content.available >= first
    except (NotFound, Aborted):
        return False
    except BaseException as error:
        if not is_own_failure(error):
            raise
        return True  # `create_verifier` logs it


async def create_verifier(
    state: RelayState, request: TransferRequest, span: Span, deadline: float, *, is_parallel: bool
) -> Verifier:
    """Return a verifier for `span`. The bytes before the span, which the runtime has, are read back and hashed.

    Args:
        state: The relay's state.
        request: What the transfer fetches.
        span: The bytes that come from peers.
        deadline: The end of the whole wait, by the loop's clock. This takes at most half of the remaining time, because
            a peer waits meanwhile.
        is_parallel: Whether the span is one of several parts that the runtime fetches in parallel.

    Returns:
        The verifier; an `Unverified` one if the relay need not verify the span, or cannot.
    """
    digest = request.digest
    if not state.verify and span.length > request.collect_limit:
        return Unverified(digest)
    if span.stop < span.size:
        state.metrics.unverified.add("part")
        _log_part(state, digest, f"bytes {span.start} to {span.stop - 1} do not reach its end")
        return Unverified(digest)
    if is_parallel and span.start > 0:
        state.metrics.unverified.add("beginning")
        _log_part(state, digest, f"the runtime fetches it in parallel parts, this one from byte {span.start} on")
        return Unverified(digest)
    verifier = Verifier(digest)
    bound = Deadline((deadline - asyncio.get_running_loop().time()) / 2)
    try:
        async with bound:
            if await read_back(verifier, digest, span.start, state.context.store):
                return verifier
        state.log.info(_NOT_READ_BACK, digest, f", from byte {span.start} on")
    except BaseException as error:
        if not is_own_failure(error):
            raise
        if bound.expired():
            state.metrics.limited.add("wait_timeout")
            state.log.warning(_NOT_READ_BACK, digest, " in time")
        else:
            state.log.exception(_NOT_READ_BACK, digest, "")
    state.metrics.unverified.add("beginning")
    return Unverified(digest)


def _log_part(state: RelayState, digest: Digest, reason: str) -> None:
    """Log that a part is not verified: the first of many parts with level INFO, the others with DEBUG."""
    level = logging.INFO if state.parallel.should_log(digest) else logging.DEBUG
    state.log.log(level, "%s: relayed unverified: %s", digest, reason)


async def read_back(verifier: Verifier, digest: Digest, stop: int, store: Store) -> bool:
    """Seed `verifier` with the bytes of `digest` before `stop`, which the runtime has. They are hashed in a thread.

    Args:
        verifier: The verifier, which was not fed yet.
        digest: The content.
        stop: The end of these bytes.
        store: Shows what the runtime has.

    Returns:
        Whether the store has shown all these bytes.
    """
    if stop == 0:
        return True
    try:
        async with await store.open(digest, partial=True) as content:
            return await seed_from(content, verifier, stop)
    except (NotFound, Aborted, Unavailable):
        return False


async def seed_from(content: Content, verifier: Verifier, stop: int) -> bool:
    """Seed `verifier` with the bytes of `content` before `stop`. They are hashed in a thread.

    Returns:
        Whether `content` has all these bytes.

    Raises:
        Aborted: The content was lost.
        Unavailable: The store does not answer.
    """
    if content.available < stop:
        return False  # some bytes before `stop` are missing, so it is useless to read the others
    buffer = memoryview(bytearray(MIB))
    done = 0
    while done < stop:
        count = await read_into(content, done, buffer[: min(MIB, stop - done)])
        if count == 0:
            return False
        await asyncio.to_thread(verifier.seed, buffer[:count])
        done += count
    return True


async def discard_ingest(state: RelayState, digest: Digest) -> bool:
    """Remove the ingest of `digest`, because its bytes are wrong. A failure is logged and not raised.

    Returns:
        Whether it was removed.
    """
    try:
        is_removed = await call(
            lambda: state.context.store.discard(digest),
            state.context,
            "the store",
            about=digest,
            allowed=(Unavailable,),
        )
    except Unavailable as error:
        state.log.warning("%s: the runtime's unfinished copy is wrong and could not be removed: %s", digest, error)
        return False
    if is_removed:
        state.log.warning("%s: removed the runtime's unfinished copy, which was wrong", digest)
    return is_removed
