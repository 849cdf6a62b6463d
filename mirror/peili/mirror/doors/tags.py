"""The endpoint ``tags/list``: the tags of a repository that a door answers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable
from contextlib import suppress
from functools import partial
from typing import TypeAlias
from urllib.parse import quote, urlencode

from starlette.types import Scope

from peili.mirror.doors.response import ResponseWriter
from peili.mirror.errors import NotFound
from peili.mirror.oci.references import OCTET_STREAM, Digest
from peili.mirror.oci.requests import NAME_UNKNOWN, UNSUPPORTED, HTTPError, Target, api_path, parse_query
from peili.mirror.plugins.calls import call
from peili.mirror.plugins.interfaces import Context, Store

TagChoice: TypeAlias = Callable[[Target, Collection[str]], Awaitable[Collection[str]]]
"""Returns the tags that a door answers, from the repository and the tags that the store can serve."""
_MAX_DIGITS = 9
"""A number with more digits is larger than any number of tags."""


async def send_tags(
    target: Target, response: ResponseWriter, scope: Scope, context: Context, choose: TagChoice
) -> None:
    """Send the tags of a repository in lexical order (OCI distribution spec, "Listing Tags").

    The parameters of the query are ``last``, the tag after which the list begins, and ``n``, its largest length.

    Args:
        target: The repository.
        response: Writes the response.
        scope: The ASGI scope of the request.
        context: The context of the door.
        choose: See `TagChoice`.

    Raises:
        HTTPError: 404, the door answers no tag of the repository; 400, ``n`` is not a number.
        Unavailable: The store does not answer in time.
    """
    store = context.store
    digests = {
        reference.tag: descriptor.digest
        for reference, descriptor in await call(store.images, context, "the store", allowed=(Exception,))
        if (reference.registry, reference.repository) == (target.registry, target.repository)
        and context.selection.allows(reference.registry, reference.repository, reference.tag)
    }
    find_available = partial(_available_manifests, store, set(digests.values()))
    available = await call(find_available, context, "the store", allowed=(Exception,))
    chosen = await choose(target, sorted(tag for tag, digest in digests.items() if digest in available))
    tags = sorted(tag for tag in chosen if context.selection.allows(target.registry, target.repository, tag))
    if not tags:
        raise HTTPError(404, NAME_UNKNOWN, f"this mirror answers no tag of {target.name}")
    query = parse_query(scope)
    page = _page(tags, query.get("n"), query.get("last"))
    headers: dict[str, str] = {}
    if page and page[-1] != tags[-1]:
        next_query = urlencode({**query, "last": page[-1]})
        headers["Link"] = f'<{quote(scope["path"])}?{next_query}>; rel="next"'
    # The name is part of the path as the client wrote it, which may begin with the registry.
    name = api_path(scope["path"], scope.get("root_path", "")).removeprefix("/").removesuffix("/tags/list")
    await response.json({"name": name, "tags": page}, headers)


async def _available_manifests(store: Store, digests: Iterable[Digest]) -> set[Digest]:
    """Return those of `digests` that the store can serve as manifests."""
    available: set[Digest] = set()
    for digest in digests:
        with suppress(NotFound):
            descriptor = await store.describe(digest)
            if descriptor.media_type != OCTET_STREAM:
                available.add(digest)
    return available


def _page(tags: list[str], n: str | None, last: str | None) -> list[str]:
    rest = [tag for tag in tags if last is None or tag > last]
    if n is None:
        return rest
    if not (n.isascii() and n.isdigit()):
        raise HTTPError(400, UNSUPPORTED, f"n is not a number: {n[:20]!a}")
    digits = n.lstrip("0")
    return rest if len(digits) > _MAX_DIGITS else rest[: int(digits or "0")]
