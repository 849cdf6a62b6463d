"""What the runtime itself has of content that is relayed to it, as its store shows it: the ingest that this very relay
fills. Nothing here waits long for a store, or fails because of one.
"""

from __future__ import annotations

import asyncio

from peili.mirror.errors import Aborted, NotFound, Unavailable
from peili.mirror.oci.references import Digest
from peili.mirror.relay.means import Fetch, Means
from peili.mirror.support.deadlines import Deadline

_LEFT = "%s: the runtime's unfinished copy is wrong and could not be removed: %s"


async def size_of_ingest(means: Means, digest: Digest, ends: float) -> int | None:
    """How many bytes the runtime itself expects; None where it does not say so. `ends`, by the loop's clock, is when
    the wait of which this is a part is over.
    """
    left = ends - asyncio.get_running_loop().time()
    bound = Deadline(min(means.limits.first_byte_timeout, left / 4))  # the rest is for what comes after it
    try:
        async with bound, await means.store.open(digest, partial=True) as content:
            return content.size
    except (NotFound, Aborted, Unavailable):
        return None
    except Exception:  # a stranger's code
        if bound.expired():
            means.metrics.limited.add("first_byte_timeout")
        else:
            # The door has logged that the store fails: this is its second question for the same request.
            means.log.debug("%s: the store can't say the size", digest, exc_info=True)
        return None


async def may_resume(means: Means, fetch: Fetch) -> bool:
    """Whether the runtime may have all before what it asks for: then it takes one stream. Where its store says that
    it has not, or other parts are under way, it fetches in parallel, and will close the answer early.
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
    except Exception:  # noqa: BLE001 - a stranger's code; what is wrong is told when it is read
        return True


async def discard_ingest(means: Means, digest: Digest) -> None:
    """Remove what the runtime has of `digest` so far, which is wrong. Returns whatever becomes of it."""
    bound = Deadline(means.limits.first_byte_timeout)
    try:
        async with bound:
            if await means.store.discard(digest):
                means.log.warning("%s: removed the runtime's unfinished copy, which was wrong", digest)
    except Unavailable as error:
        means.log.warning(_LEFT, digest, error)
    except Exception:  # a stranger's code
        if bound.expired():
            means.metrics.limited.add("first_byte_timeout")
            means.log.warning(_LEFT, digest, "not in time")
        else:
            means.log.exception(_LEFT, digest, "the store failed")
