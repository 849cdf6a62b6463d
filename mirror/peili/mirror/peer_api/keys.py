"""One question between peers: do you have this key? How it is put, answered and read.

HEAD ``{peer}/_router/keys/{key}`` is answered with 200 by a host whose own store holds the key whole, with 404 by any
other. A host never asks anyone else, so that a question cannot travel in a circle.
"""

from __future__ import annotations

from urllib.parse import quote

from starlette.responses import Response

from peili.mirror.client.connection import ResponseHead
from peili.mirror.errors import Aborted, NotFound, Unavailable
from peili.mirror.oci.references import Descriptor, Digest, Key, parse_key
from peili.mirror.peer_api.peers import Holder, Peer
from peili.mirror.plugins.plugin import Context
from peili.mirror.support.deadlines import Deadline

KEYS_ROUTE = "/keys/{key:path}"
"""Below what the peer door gives to the router."""
DIGEST_HEADER = "Docker-Content-Digest"
COMPLETE_HEADER = "Peili-Complete"
"""``true``: the whole content is there."""
SIZE_HEADER = "Peili-Size"
"""The whole size in bytes. (Content-Length is that of the answer, which is empty.)"""

_MAX_SIZE_DIGITS = 18


def key_path(key: Key) -> str:
    """Where a peer is asked for `key`, below its base URL."""
    return f"/_router/keys/{quote(str(key), safe='/:')}"


async def answer(context: Context, text: str) -> Response:
    """The answer to a peer that asks for the key that `text` is, before the peer has given up on it."""
    try:
        async with Deadline(context.limits.lookup_timeout):
            found = await _describe(context, parse_key(text))
    except ValueError:
        return Response(status_code=400)
    except (NotFound, Aborted):
        return Response(status_code=404)
    except TimeoutError:
        context.limited("lookup_timeout")
        return Response(status_code=503)
    except Unavailable:
        return Response(status_code=503)
    return Response(headers={DIGEST_HEADER: found.digest, COMPLETE_HEADER: "true", SIZE_HEADER: str(found.size)})


async def _describe(context: Context, key: Key) -> Descriptor:
    if isinstance(key, Digest):
        return await context.store.describe(key)
    if not context.selection.allows(key.registry, key.repository, key.tag):
        raise NotFound(f"{key}: not what this mirror is for")
    target = await context.store.resolve(key)
    return await context.store.describe(target.digest)


def read_answer(peer: Peer, key: Key, answer: ResponseHead) -> Holder | None:
    """What `peer` said when it was asked for `key`; None: it does not have it, or what answered is no peili."""
    if answer.status != 200 or answer.header(COMPLETE_HEADER) != "true":
        return None
    if isinstance(key, Digest) and answer.header(DIGEST_HEADER) != key:
        return None
    size = answer.header(SIZE_HEADER) or ""
    known = size.isascii() and size.isdecimal() and len(size) <= _MAX_SIZE_DIGITS
    return Holder(peer, complete=True, size=int(size) if known else None)
