"""What this host's runtime has so far of content that is relayed to it, as the store shows it.

That is the ingest that the relay itself fills. Each function here bounds its wait for the store, and treats a failure
of the store as an unknown.
"""

from __future__ import annotations

import asyncio
import logging

from peili.mirror.errors import Aborted, NotFound, Unavailable
from peili.mirror.limits import MIB
from peili.mirror.oci.ranges import Span
from peili.mirror.oci.references import Digest
from peili.mirror.plugins.calls import call
from peili.mirror.plugins.interfaces import Store
from peili.mirror.relay.relay import RelayState, TransferRequest
from peili.mirror.relay.verify import Unverified, Verifier
from peili.mirror.support.deadlines import Deadline

_NOT_READ_BACK = "%s: passed on unverified: the bytes that the runtime has can't be read back%s"


async def ingest_size(state: RelayState, digest: Digest, deadline: float) -> int | None:
    """Return how many bytes the runtime expects `digest` to have.

    Args:
        state: the relay's state.
        digest: the content.
        deadline: when, by the loop's clock, the whole wait ends of which this is a part.

    Returns:
        None if the store does not state it within a quarter of the time that is left.
    """
    remaining = deadline - asyncio.get_running_loop().time()
    bound = Deadline(min(state.limits.first_byte_timeout, remaining / 4))
    try:
        async with bound, await state.store.open(digest, partial=True) as content:
            return content.size
    except (NotFound, Aborted, Unavailable):
        return None
    except Exception:  # a plug-in may raise anything
        if bound.expired():
            state.metrics.limited.add("first_byte_timeout")
        else:
            # The door has already logged that the store fails: this is the second question for the same request.
            state.log.debug("%s: the store can't tell the size", digest, exc_info=True)
        return None


async def may_resume(state: RelayState, digest: Digest, first: int) -> bool:
    """Return whether the runtime may have all bytes before `first`, and so takes the response as one stream.

    If it does not have them, or if other parts are in flight, it fetches in parallel and closes the response early.
    """
    if not state.verify or state.parallel.is_parallel(digest):
        return False
    try:
        async with (
            asyncio.timeout(state.limits.first_byte_timeout / 4),
            await state.store.open(digest, partial=True) as content,
        ):
            return content.available >= first
    except (NotFound, Aborted):
        return False
    except Exception:  # noqa: BLE001 - a plug-in may raise anything; reading the content logs the error
        return True


async def create_verifier(
    state: RelayState, request: TransferRequest, span: Span, deadline: float, *, is_parallel: bool
) -> Verifier:
    """Create the verifier for `span`. What the runtime has before the span is read back and hashed.

    Args:
        state: the relay's state.
        request: what the transfer fetches.
        span: what comes from peers.
        deadline: when, by the loop's clock, the whole wait ends of which this is a part. This takes at most half of the
            time that is left: meanwhile, a peer waits that is not to blame.
        is_parallel: the runtime fetches parallel parts, of which this is one.

    Returns:
        An `Unverified` one if the relay must not verify the span, or if it cannot.
    """
    digest = request.digest
    if not state.verify and span.length > request.collect_limit:
        return Unverified(digest)
    if span.stop < span.size:
        state.metrics.unverified.add("part")
        _log_part(state, digest, f"bytes {span.start} to {span.stop - 1} are not its end")
        return Unverified(digest)
    if is_parallel and span.start > 0:
        state.metrics.unverified.add("beginning")
        _log_part(state, digest, f"the runtime fetches it in parallel parts, this one from byte {span.start} on")
        return Unverified(digest)
    verifier = Verifier(digest)
    bound = asyncio.timeout((deadline - asyncio.get_running_loop().time()) / 2)
    try:
        async with bound:
            if await read_back(verifier, digest, span.start, state.store):
                return verifier
        state.log.info(_NOT_READ_BACK, digest, f", from byte {span.start} on")
    except Exception:  # a plug-in may raise anything
        if bound.expired():
            state.metrics.limited.add("wait_timeout")
            state.log.warning(_NOT_READ_BACK, digest, " in time")
        else:
            state.log.exception(_NOT_READ_BACK, digest, "")
    state.metrics.unverified.add("beginning")
    return Unverified(digest)


def _log_part(state: RelayState, digest: Digest, reason: str) -> None:
    """Log the first of many parts for the operator, and the others for debugging."""
    level = logging.INFO if state.parallel.should_log(digest) else logging.DEBUG
    state.log.log(level, "%s: passed on unverified: %s", digest, reason)


async def read_back(verifier: Verifier, digest: Digest, stop: int, store: Store) -> bool:
    """Seed `verifier` with the bytes of `digest` before `stop`, which the runtime has. Hashes in a thread.

    Returns:
        False if the store cannot show these bytes.
    """
    if stop == 0:
        return True
    try:
        async with await store.open(digest, partial=True) as content:
            if content.available < stop:
                return False  # the runtime wants a part from further on: reading what is there would be in vain
            buffer = memoryview(bytearray(MIB))
            done = 0
            while done < stop:
                count = await content.readinto(done, buffer[: min(MIB, stop - done)])
                if count == 0:
                    return False
                await asyncio.to_thread(verifier.seed, buffer[:count])
                done += count
    except (NotFound, Aborted, Unavailable):
        return False
    return True


async def discard_ingest(state: RelayState, digest: Digest) -> None:
    """Remove what the runtime has of `digest`, because it is wrong. Logs a failure and raises nothing."""
    try:
        is_removed = await call(
            lambda: state.store.discard(digest),
            state.context,
            "the store",
            about=digest,
            allowed=(Unavailable,),
        )
    except Unavailable as error:
        state.log.warning("%s: the runtime's unfinished copy is wrong and could not be removed: %s", digest, error)
    else:
        if is_removed:
            state.log.warning("%s: removed the runtime's unfinished copy, which was wrong", digest)
