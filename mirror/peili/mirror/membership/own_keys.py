"""Finds out what this host has of a key, for other hosts that ask."""

from __future__ import annotations

from peili.mirror.errors import NotFound
from peili.mirror.oci.references import Descriptor, Digest, Key
from peili.mirror.plugins.interfaces import Context


async def digest_of(context: Context, key: Key) -> Digest:
    """Return the digest that `key` means on this host, so that other hosts may be told what this host has of it.

    Raises:
        NotFound: The store does not have the tag, the mirror is not for it, or the mirror was drained.
        StoreUnavailable: The store does not answer.
    """
    if context.is_drained():
        raise NotFound("this host is drained")
    if isinstance(key, Digest):
        return key
    if not context.selection.allows(key.registry, key.repository, key.tag):
        raise NotFound(f"this mirror is not for {key}")
    return (await context.store.resolve(key)).digest


async def describe_own(context: Context, key: Key, *, is_proven: bool) -> Descriptor:
    """Return what this host's store has whole, and may tell.

    Args:
        context: The context of the router.
        key: The key.
        is_proven: Whether the host that asks has proven who it is. If not, it is told only what is open.

    Raises:
        NotFound: The store does not have the whole content, or this host may not tell that it has it.
        StoreUnavailable: The store does not answer.
    """
    descriptor = await context.store.describe(await digest_of(context, key))
    if not (is_proven or await context.is_open(key)):
        raise NotFound(f"{key} is not open")
    return descriptor
