"""Answers other hosts that ask whether this host has a key (see peer_api/keys.py)."""

from __future__ import annotations

from starlette.responses import Response

from peili.mirror.errors import Aborted, NotFound, Unavailable
from peili.mirror.membership.own_keys import digest_of
from peili.mirror.oci.references import Key, parse_key
from peili.mirror.peer_api.keys import DIGEST_HEADER, InFlight, holder_headers
from peili.mirror.plugins.interfaces import Context
from peili.mirror.support.deadlines import Deadline


async def answer_key(
    context: Context, text: str, *, includes_in_flight: bool = False, is_proven: bool = False
) -> Response:
    """Answer a peer that asks for a key: by the store, and by what this host receives.

    Args:
        context: The context of the router.
        text: The key, as it stands in the path of the request.
        includes_in_flight: Whether the peer also asks for content that is still arriving.
        is_proven: Whether the peer has proven who it is. Without that, it is told nothing of what is not open.

    Returns:
        200 if the store has the whole content or, with `includes_in_flight`, a part of content whose size is known, or
        if this host receives or expects the content. 404 if not. 400 if `text` is not a key. 503 if the store does not
        answer within ``limits.lookup_timeout``: the peer does not wait any longer.
    """
    try:
        async with Deadline(context.limits.lookup_timeout):
            key = parse_key(text)
            headers = await _key_headers(context, key, includes_in_flight=includes_in_flight)
            if not (is_proven or await context.is_open(key)):
                return Response(status_code=404)
    except ValueError:
        return Response(status_code=400)
    except (NotFound, Aborted):
        return Response(status_code=404)
    except TimeoutError:
        context.limited("lookup_timeout")
        return Response(status_code=503)
    except Unavailable:
        return Response(status_code=503)
    return Response(headers=headers)


async def _key_headers(context: Context, key: Key, *, includes_in_flight: bool) -> dict[str, str]:
    digest = await digest_of(context, key)
    try:
        return holder_headers(digest, (await context.store.describe(digest)).size)
    except NotFound:
        if not includes_in_flight or digest != key:
            raise
    state = context.in_flight(digest)
    try:
        async with await context.store.open(digest, partial=True) as content:
            if content.size is not None and content.complete:
                return holder_headers(digest, content.size)
            shown = InFlight(content.available, content.size, (context.identity,))
    except (NotFound, Aborted, Unavailable):
        if state is None:
            raise
        shown = state
    if state is None and shown.size is None:
        raise NotFound(f"the size of {digest} is not known yet")
    return {DIGEST_HEADER: digest} | shown.combined_with(state).headers()
