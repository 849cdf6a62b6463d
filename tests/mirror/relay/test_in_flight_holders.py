"""Holders whose copy is still arriving: the relay fetches only from whole holders."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.mirror.relay.peers import honest, peers
from tests.mirror.relay.pulling import SMALL, AdvisingRouter, content, pulling

from peili.mirror import Digest, Feed

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("is_advised", [True, False], ids=["by acquire", "by lookup"])
async def test_a_holder_of_an_unfinished_copy_is_not_asked(is_advised: bool) -> None:
    data = content(SMALL)
    async with peers(data, honest, honest) as [a, b]:
        partial = replace(a.holder, complete=False, available=10)
        router = AdvisingRouter(Feed((partial, b.holder))) if is_advised else [partial, b.holder]
        async with pulling(router) as host:
            pulled = await host.get(Digest.of(data))
        assert (pulled.status, pulled.body) == (200, data)
        assert (len(a.requests), len(b.requests)) == (0, 1)


@pytest.mark.parametrize("is_advised", [True, False], ids=["by acquire", "by lookup"])
async def test_if_all_copies_are_unfinished_the_runtime_goes_upstream(is_advised: bool) -> None:
    data = content(SMALL)
    async with peers(data, honest) as [a]:
        partial = replace(a.holder, complete=False, available=10)
        async with pulling(AdvisingRouter(Feed((partial,))) if is_advised else [partial]) as host:
            assert (await host.get(Digest.of(data))).status == 404
        assert not a.requests
