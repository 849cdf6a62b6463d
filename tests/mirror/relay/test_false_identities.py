"""A peer that claims the identity of another one does not hide that one's content."""

from __future__ import annotations

import pytest
from tests.mirror.relay.peers import Exchange, Script, answers, honest, peers, silent, wrong_bytes
from tests.mirror.relay.pulling import LARGE, SMALL, content, pulling

from peili.mirror import Digest, Peer
from peili.routers.static import StaticRouter

pytestmark = pytest.mark.anyio


def known_as(identity: str, script: Script) -> Script:
    """Claim to have the content and to be `identity`; `script` decides what is sent."""

    async def answer(exchange: Exchange) -> None:
        if exchange.request.path.startswith("/_router/keys/"):
            size = str(len(exchange.content))
            await exchange.head(content_length="0", peili_id=identity, peili_complete="true", peili_size=size)
        else:
            await script(exchange)

    return answer


@pytest.mark.parametrize(("bad", "number"), [(wrong_bytes, 1), (silent, 1), (silent, 5), (answers(404), 5)])
@pytest.mark.parametrize("size", [SMALL, LARGE])
async def test_each_pull_succeeds_with_the_real_holder(size: int, number: int, bad: Script) -> None:
    scripts = [known_as("node-b", bad)] * number + [known_as("node-b", honest)]
    for seed in range(3):
        data = content(size, seed)
        async with peers(data, *scripts) as scripted:
            router = StaticRouter([Peer(url, (url,)) for each in scripted for url in each.urls])
            async with pulling(router, hedge_delay=0.05, first_byte_timeout=1.0) as host:
                pulled = await host.get(Digest.of(data))
                assert (pulled.status, pulled.body, pulled.whole) == (200, data, True)
