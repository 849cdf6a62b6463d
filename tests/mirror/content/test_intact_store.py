"""Content that is whole in a store, but wrong: the host notices that when it is asked, and then gives it to nobody."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager

import httpx
import pytest
from tests.mirror.relay.pulling import MIB, content, path_of
from tests.support.waiting import until
from typing_extensions import override

from peili.mirror import Content, Digest, Gone, Have, Mirror, NotFound, Store, StoreEvent, Tasks, serve
from peili.mirror.content.intact_store import IntactStore
from peili.mirror.content.selected_store import SelectedStore
from peili.mirror.peer_api.received import parse_received, received_path
from peili.routers.memory import MemoryNetwork, MemoryRouter
from peili.stores.memory import MemoryStore

pytestmark = pytest.mark.anyio

DATA = content(MIB + 1000)
DIGEST = Digest.of(DATA)
WRONG = DATA[:-5] + b"?" + DATA[-4:]


class RottenStore(MemoryStore):
    """Has `DATA` with one wrong byte: what it was given has changed on the disk."""

    def __init__(self) -> None:
        super().__init__()
        self.add(DATA)

    @override
    async def open(self, digest: Digest, *, partial: bool = False) -> Content:
        opened = await super().open(digest, partial=partial)
        if digest != DIGEST:
            return opened
        other = MemoryStore()
        return await other.open(other.add(WRONG).digest)


@asynccontextmanager
async def served(store: MemoryStore, network: MemoryNetwork, identity: str) -> AsyncGenerator[tuple[str, str]]:
    """Serve a host with `store`. Yield the URLs of its local and its peer door."""
    mirror = Mirror(store, MemoryRouter(network), identity=identity, insecure=True)
    async with mirror, serve(mirror, local="127.0.0.1:0", peer="127.0.0.1:0") as serving:
        yield f"http://{serving.local_addresses[0]}", f"http://{serving.peer_addresses[0]}"


async def test_a_host_that_is_told_of_wrong_bytes_gives_them_to_nobody_else(caplog: pytest.LogCaptureFixture) -> None:
    network = MemoryNetwork()
    async with (
        served(RottenStore(), network, "holder") as (_, peer_door),
        served(MemoryStore(), network, "puller") as (local_door, _),
        httpx.AsyncClient(trust_env=False, timeout=60) as client,
    ):
        await until(lambda: DIGEST in network.holdings.get("holder", {}))
        assert (await client.get(peer_door + path_of(DIGEST))).content == WRONG, "it has not noticed it yet"
        with pytest.raises(httpx.RemoteProtocolError):  # cut off
            await client.get(local_door + path_of(DIGEST))
        await until(lambda: DIGEST not in network.holdings["holder"])
        assert "this host's copy has wrong bytes; no other host gets it" in caplog.text
        assert (await client.get(peer_door + path_of(DIGEST))).status_code == 404
        received = await client.get(peer_door + received_path(DIGEST))
        [attempt] = parse_received(received.content)
        assert [*attempt.prefixes] == [Digest.of(part).encoded[:16] for part in (WRONG[:MIB], WRONG)]


@pytest.mark.parametrize("wrapper", [IntactStore, SelectedStore])
def test_a_store_around_another_one_passes_every_call_on(wrapper: type[Store]) -> None:
    """An inherited default would hide what the store says: who may have content, for example."""
    of_plugins = {"from_config", "run", "ready", "reload"}  # the mirror asks the inner store
    methods = {name for name in dir(Store) if not name.startswith("_")} - of_plugins
    assert {name for name in methods if getattr(wrapper, name) is getattr(Store, name)} == set()


async def test_right_content_stays_when_it_is_asked_about() -> None:
    network, store = MemoryNetwork(), MemoryStore()
    store.add(DATA)
    async with served(store, network, "a") as (_, peer_door), httpx.AsyncClient(trust_env=False, timeout=60) as client:
        assert (await client.get(peer_door + received_path(DIGEST))).status_code == 200
        assert (await client.get(peer_door + path_of(DIGEST))).content == DATA


async def test_damaged_content_is_gone_until_the_store_gets_it_anew() -> None:
    backend = MemoryStore()
    backend.add(DATA)
    store, told = IntactStore(backend), list[StoreEvent]()

    async def follow() -> None:
        async with aclosing(store.watch()) as batches:
            async for batch in batches:
                told.extend(each for each in batch if isinstance(each, (Have, Gone)))

    async with Tasks() as tasks:
        tasks.start(follow())
        await until(lambda: told == [Have(DIGEST, len(DATA))])
        store.note_damaged(DIGEST)
        await until(lambda: told[1:] == [Gone(DIGEST)])
        for operation in (store.describe(DIGEST), store.open(DIGEST), store.open(DIGEST, partial=True)):
            with pytest.raises(NotFound):
                await operation
        other = backend.add(b"other")
        await until(lambda: told[2:] == [Have(other.digest, 5)])
        backend.remove(DIGEST)
        await until(lambda: not store.is_damaged(DIGEST))
        backend.add(DATA)
        await until(lambda: told[-1] == Have(DIGEST, len(DATA)))
        assert (await store.describe(DIGEST)).size == len(DATA)
