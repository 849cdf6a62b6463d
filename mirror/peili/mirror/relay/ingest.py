"""What this host's runtime has so far of content that is relayed to it, as the store shows it.

That is the ingest that the relay itself fills. Each function here bounds its wait for the store, and treats a failure
of the store as an unknown.
"""

from __future__ import annotations

import asyncio

from peili.mirror.errors import Aborted, NotFound, Unavailable
from peili.mirror.limits import MIB
from peili.mirror.oci.references import Digest
from peili.mirror.plugins.interfaces import Store
from peili.mirror.relay.means import Fetch, Means
from peili.mirror.relay.verify import Verifier
from peili.mirror.support.deadlines import Deadline

_NOT_REMOVED = "%s: the runtime's unfinished copy is wrong and could not be removed: %s"


async def ingest_size(means: Means, digest: Digest, deadline: float) -> int | None:
    """How many bytes the runtime expects `digest` to have.

    Args:
        means: the relay's state.
        digest: the content.
        deadline: when, by the loop's clock, the whole wait ends of which this is a part.

    Returns:
        None if the store does not say it in a quarter of the time that is left.
    """
    remaining = deadline - asyncio.get_running_loop().time()
    bound = Deadline(min(means.limits.first_byte_timeout, remaining / 4))
    try:
        async with bound, await means.store.open(digest, partial=True) as content:
            return content.size
    except (NotFound, Aborted, Unavailable):
        return None
    except Exception:  # a plug-in may raise anything
        if bound.expired():
            means.metrics.limited.add("first_byte_timeout")
        else:
            # The door has already logged that the store fails: this is the second question for the same request.
            means.log.debug("%s: the store can't say the size", digest, exc_info=True)
        return None


async def may_resume(means: Means, fetch: Fetch) -> bool:
    """Whether the runtime may have all bytes before the requested ones, and so takes the answer as one stream.

    If it does not have them, or if other parts are in flight, it fetches in parallel and closes the answer early.
    """
    if not means.verify or means.turns.is_parallel(fetch.digest):
        return False
    try:
        async with (
            asyncio.timeout(means.limits.first_byte_timeout / 4),
            await means.store.open(fetch.digest, partial=True) as content,
        ):
            return content.available >= ((fetch.wanted and fetch.wanted.first) or 0)
    except (NotFound, Aborted):
        return False
    except Exception:  # noqa: BLE001 - a plug-in may raise anything; reading the content logs the error
        return True


async def resumed_verifier(digest: Digest, offset: int, store: Store) -> Verifier | None:
    """A verifier for content from byte `offset` on. What the runtime has before that is read back and hashed.

    Hashes in a thread. The caller bounds the wait, and handles what `store` raises other than its documented errors.

    Returns:
        None if the store cannot show the bytes before `offset`.
    """
    verifier = Verifier(digest)
    if offset == 0:
        return verifier
    try:
        async with await store.open(digest, partial=True) as content:
            if content.available < offset:
                return None  # the runtime wants a part from further on: reading the bytes that exist would be in vain
            buffer = memoryview(bytearray(MIB))
            done = 0
            while done < offset:
                count = await content.readinto(done, buffer[: min(MIB, offset - done)])
                if count == 0:
                    return None
                await asyncio.to_thread(verifier.seed, buffer[:count])
                done += count
    except (NotFound, Aborted, Unavailable):
        return None
    return verifier


async def discard_ingest(means: Means, digest: Digest) -> None:
    """Remove what the runtime has of `digest`, because it is wrong. Logs a failure and raises nothing."""
    bound = Deadline(means.limits.first_byte_timeout)
    try:
        async with bound:
            if await means.store.discard(digest):
                means.log.warning("%s: removed the runtime's unfinished copy, which was wrong", digest)
    except Unavailable as error:
        means.log.warning(_NOT_REMOVED, digest, error)
    except Exception:  # a plug-in may raise anything
        if bound.expired():
            means.metrics.limited.add("first_byte_timeout")
            means.log.warning(_NOT_REMOVED, digest, "not in time")
        else:
            means.log.exception(_NOT_REMOVED, digest, "the store failed")
