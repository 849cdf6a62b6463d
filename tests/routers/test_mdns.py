"""The router that finds members by multicast DNS, on loopback.

Other tests may use the same loopback at the same time, so each test only looks for its own hosts.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager
from itertools import count
from typing import Any
from uuid import uuid4

import ifaddr
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.neighbours import Neighbour, entered, holder_ids, neighbours, refusing_url, served
from tests.support.ports import free_port
from tests.support.waiting import until
from zeroconf.asyncio import AsyncServiceInfo, AsyncZeroconf

from peili.mirror import AddressKinds, ConfigError, Digest, Peer, Plugins
from peili.routers.mdns import MdnsRouter, announcement
from peili.routers.mdns import discovery as mdns_discovery
from peili.routers.mdns import router as mdns_router
from peili.routers.mdns import service as mdns_service
from peili.routers.mdns.interfaces import NetworkAttachment, find_attachment
from peili.routers.mdns.service import SERVICE_TYPE, from_service, to_service

LOOPBACK = ("127.0.0.1",)


def host(name: str, *, port: int = 5051) -> Peer:
    """Return a host on loopback that no other test uses."""
    return Peer(f"{name}-{uuid4().hex[:8]}", (f"http://127.0.0.1:{port}",), labels={"zone": "z"})


def seen(router: MdnsRouter, *hosts: Peer) -> list[Peer]:
    """Return those of `hosts` that the router knows, in the same order."""
    known = {peer.id: peer for peer in router.peers()}
    return [known[each.id] for each in hosts if each.id in known]


async def _announce(zeroconf: AsyncZeroconf, info: AsyncServiceInfo) -> None:
    # Cooperating: the names are unique, so zeroconf need not probe them, which takes most of a second.
    await (await zeroconf.async_register_service(info, cooperating_responders=True))  # pyright: ignore[reportUnknownMemberType] - zeroconf does not state the type of its Awaitable


@asynccontextmanager
async def announced(*infos: AsyncServiceInfo) -> AsyncGenerator[AsyncZeroconf, None]:
    """Announce services as another host."""
    zeroconf = AsyncZeroconf(interfaces=list(LOOPBACK))
    try:
        await asyncio.gather(*(_announce(zeroconf, info) for info in infos))
        yield zeroconf
    finally:
        await zeroconf.async_close()


@pytest.mark.anyio
async def test_hosts_find_each_other_and_forget_a_host_that_stops() -> None:
    a, b, c = host("a", port=1), host("b", port=2), host("c", port=3)
    here, there, away = (MdnsRouter(interfaces=LOOPBACK) for _ in range(3))
    async with entered(here, identity=a.id, peer=a), entered(there, identity=b.id, peer=b):
        async with entered(away, identity=c.id, peer=c):
            await until(lambda: seen(here, a, b, c) == [b, c])
            await until(lambda: seen(there, a, b, c) == [a, c])
            await until(lambda: seen(away, a, b, c) == [a, b])
        await until(lambda: seen(here, b, c) == [b])
        await until(lambda: seen(there, a, c) == [a])
    assert not here.ready()


@pytest.mark.anyio
async def test_a_second_mirror_that_enters_a_router_does_not_disturb_the_first() -> None:
    a = host("a")
    async with (
        entered(here := MdnsRouter(interfaces=LOOPBACK)),
        entered(MdnsRouter(interfaces=LOOPBACK), identity=a.id, peer=a),
    ):
        await until(lambda: seen(here, a))
        with pytest.raises(RuntimeError, match="running already"):
            async with entered(here):
                pass
        async with aclosing(here.members()) as sets:
            assert a in await anext(sets)


@pytest.mark.anyio
async def test_run_does_not_wait_until_this_host_is_announced() -> None:
    """To announce takes most of a second, because the name is probed first (RFC 6762, section 8.1)."""
    a = host("a")
    async with entered(there := MdnsRouter(interfaces=LOOPBACK)):
        await until(there.ready)
        async with entered(MdnsRouter(interfaces=LOOPBACK), identity=a.id, peer=a):
            assert not seen(there, a)
            await until(lambda: seen(there, a) == [a])


@pytest.mark.anyio
async def test_a_host_without_a_peer_door_only_browses() -> None:
    a, b = host("a"), host("b")
    here, there = MdnsRouter(interfaces=LOOPBACK), MdnsRouter(interfaces=LOOPBACK)
    async with entered(here, identity=a.id), entered(there, identity=b.id, peer=b):
        await until(here.ready)
        await until(lambda: seen(here, b))
        assert seen(there, a) == []


@pytest.mark.anyio
async def test_content_is_found_at_discovered_hosts() -> None:
    key = Digest.of(uuid4().bytes)
    neighbour = Neighbour(f"n-{uuid4().hex[:8]}", key)
    async with neighbours(neighbour) as [peer]:
        here, there = MdnsRouter(interfaces=LOOPBACK), MdnsRouter(interfaces=LOOPBACK)
        async with entered(here), entered(there, identity=peer.id, peer=peer):
            await until(lambda: seen(here, peer))
            assert await holder_ids(here, key) == [peer.id]


@pytest.mark.anyio
async def test_a_host_with_new_urls_is_the_same_host() -> None:
    a = host("a", port=1)
    moved = Peer(a.id, ("http://127.0.0.1:2/peili",))
    async with entered(here := MdnsRouter(interfaces=LOOPBACK)):
        for each in (a, moved):
            async with entered(MdnsRouter(interfaces=LOOPBACK), identity=a.id, peer=each):
                await until(lambda each=each: [peer.urls for peer in seen(here, a)] == [each.urls])  # type: ignore[misc]  # bound early


@pytest.mark.anyio
async def test_a_host_that_announces_the_id_of_another_does_not_replace_it() -> None:
    a = host("a", port=1)
    impostor = to_service(Peer(a.id, ("http://127.0.0.1:2",)), {}, ())
    impostor.name = f"impostor-{uuid4().hex[:8]}.{SERVICE_TYPE}"
    async with (
        entered(here := MdnsRouter(interfaces=LOOPBACK)),
        entered(MdnsRouter(interfaces=LOOPBACK), identity=a.id, peer=a),
    ):
        await until(lambda: seen(here, a))
        async with announced(impostor):
            await until(lambda: {url for peer in here.peers() for url in peer.urls} >= {"http://127.0.0.1:2", *a.urls})
            assert [peer.urls for peer in seen(here, a)] == [a.urls]


@pytest.mark.anyio
async def test_a_crashed_host_is_forgotten_when_its_records_expire(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (mdns_discovery, mdns_service):
        monkeypatch.setattr(module, "TTL", 2)
    monkeypatch.setattr(mdns_discovery, "_RESOLVE_TIMEOUT", 0.5)
    a = host("a")
    async with entered(here := MdnsRouter(interfaces=LOOPBACK)):
        async with announced(to_service(a, {}, ())) as zeroconf:
            await until(lambda: seen(here, a))
            # without a goodbye
            await zeroconf.zeroconf._async_close()  # pyright: ignore[reportPrivateUsage] - there is no public way to crash
        await until(lambda: not seen(here, a))


@pytest.mark.anyio
async def test_invalid_services_are_ignored() -> None:
    number = count()

    def service(properties: dict[str, Any], port: int = 5051, address: str = "127.0.0.1") -> AsyncServiceInfo:
        name = f"strange-{next(number)}-{uuid4().hex[:8]}"
        return AsyncServiceInfo(
            SERVICE_TYPE,
            f"{name}.{SERVICE_TYPE}",
            port=port,
            properties=properties,
            server=f"{name}.local.",
            parsed_addresses=[address],
        )

    good = host("good")
    strange = [
        service({}),
        service({"id": "strange-a\x00b"}),
        service({"id": "strange-c", "scheme": "gopher"}),
        service({"id": "strange-d", "path": "x"}),
        service({"id": "strange-e"}, port=0),
        service({"id": "strange-f"}, address="0.0.0.0"),
        service({"id": "strange-g", **{f"label.{number}": "x" for number in range(20)}}),
        service({"id": b"\xff\xfe"}),
        service({"id": "strange-h", "scheme": "https", "name": "a\x00b"}),
        service({"id": "strange-i", "scheme": "https", "name": ".a"}),
    ]
    async with entered(here := MdnsRouter(interfaces=LOOPBACK)), announced(*strange, to_service(good, {}, ())):
        await until(lambda: seen(here, good))
        assert not [peer for peer in here.peers() if peer.id.startswith("strange")]


@pytest.mark.anyio
async def test_the_router_waits_for_a_network(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    attached = NetworkAttachment((), ())

    def current(*_: object) -> NetworkAttachment:
        return attached

    monkeypatch.setattr(mdns_router, "find_attachment", current)
    a, b = host("a"), host("b")
    async with announced(to_service(b, {}, ())), entered(here := MdnsRouter(), identity=a.id, peer=a):
        await until(lambda: caplog.records)
        assert not here.ready()
        attached = find_attachment(LOOPBACK, (4,))
        await until(lambda: seen(here, b))
    warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert warnings == ["no peers are found by multicast DNS for now: no network interface that could be used"]


@pytest.mark.anyio
async def test_a_host_with_new_addresses_is_announced_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mdns_router, "_CHECK_INTERVAL", 0.05)
    attached = find_attachment(LOOPBACK, (4,))

    def current(*_: object) -> NetworkAttachment:
        return attached

    monkeypatch.setattr(mdns_router, "find_attachment", current)
    a, b = host("a"), host("b")
    by_name = Peer(a.id, ("http://a.example:5051",))
    there = MdnsRouter(interfaces=LOOPBACK)
    async with entered(there, identity=b.id, peer=b), entered(here := MdnsRouter(), identity=a.id, peer=by_name):
        await until(lambda: [peer.urls for peer in seen(there, a)] == [("http://127.0.0.1:5051",)])
        attached = NetworkAttachment(attached.interfaces, ("127.0.0.7",))
        await until(lambda: [peer.urls for peer in seen(there, a)] == [("http://127.0.0.7:5051",)])
        await until(lambda: seen(here, b) == [b])


def attached_to(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    """Let the router use loopback as if it were an interface with these addresses."""
    attached = NetworkAttachment(find_attachment(LOOPBACK, (4,)).interfaces, addresses)

    def current(*_: object) -> NetworkAttachment:
        return attached

    monkeypatch.setattr(mdns_router, "find_attachment", current)


@pytest.mark.anyio
@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
async def test_without_another_url_a_host_is_announced_where_its_own_door_answers(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """127.0.0.2 stands for an interface: the peer door of this host answers there, and another host's at 127.0.0.3."""

    def is_loopback(host: str) -> bool:
        return host in {"127.0.0.1", "::1", "localhost"}

    monkeypatch.setattr(announcement, "_is_loopback", is_loopback)
    monkeypatch.setattr(NetworkAttachment, "dialled", AddressKinds.ANY)
    attached_to(monkeypatch, "127.0.0.1", "127.0.0.2", "127.0.0.3", "127.0.0.4", "::1", "fe80::2")
    this, other = Neighbour(f"a-{uuid4().hex[:8]}"), Neighbour("other")
    port = free_port()
    there = MdnsRouter(interfaces=LOOPBACK)
    async with (
        served(this.app(), "127.0.0.2", port),
        served(other.app(), "127.0.0.3", port),
        entered(there, identity="b"),
    ):
        peer = Peer(this.identity or "", (f"http://{name}:{port}/",))
        async with entered(MdnsRouter(), identity=peer.id, peer=peer):
            await until(lambda: [each.urls for each in seen(there, peer)] == [(f"http://127.0.0.2:{port}",)])


@pytest.mark.anyio
async def test_loopback_is_not_announced_beyond_loopback(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    attached_to(monkeypatch, "10.0.0.3", "127.0.0.1")
    nowhere = Peer(f"a-{uuid4().hex[:8]}", (refusing_url(),))
    both = Peer(f"b-{uuid4().hex[:8]}", ("http://127.0.0.1:5051", "http://10.0.0.3:5051"))
    named = Peer(f"c-{uuid4().hex[:8]}", ("http://c.example:5051",))
    there = MdnsRouter(interfaces=LOOPBACK)
    async with entered(there, identity="there"):
        for peer in (nowhere, both, named):
            async with entered(MdnsRouter(), identity=peer.id, peer=peer):
                if peer is nowhere:
                    await until(lambda: caplog.records)
                    continue
                await until(lambda peer=peer: seen(there, peer))  # type: ignore[misc]  # bound early
                assert seen(there, peer)[0].urls == ("http://10.0.0.3:5051",)
        assert seen(there, nowhere) == []
    [warning] = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert warning == (
        f"this host is not announced by multicast DNS: its peer door answers at {nowhere.urls[0]}, but at none of "
        "10.0.0.3; set peer.listen, or peer.advertise to a URL that other hosts can reach"
    )


@pytest.mark.parametrize(
    ("peer", "read"),
    [
        (Peer("a", ("http://10.0.0.3:5051",)), Peer("a", ("http://10.0.0.3:5051",))),
        (
            Peer("a b/ü", ("https://[fd00::3]:5051/peili",), "a.example", {"zone": "z"}),
            Peer("a b/ü", ("https://[fd00::3]:5051/peili",), "a.example", {"zone": "z", "rack": "1"}),
        ),
        (
            Peer("a", ("http://[fd00::3]:1", "http://10.0.0.3:1", "http://10.0.0.4:2")),
            Peer("a", ("http://10.0.0.3:1", "http://[fd00::3]:1")),
        ),
        (Peer("a", ("https://a.example",)), Peer("a", ("https://10.9.9.9:443",), "a.example")),
        (Peer("a", ("http://[::]:5051",)), Peer("a", ("http://10.9.9.9:5051",))),
    ],
)
def test_a_service_is_read_as_the_peer(peer: Peer, read: Peer) -> None:
    extra = {"rack": "1"} if "rack" in read.labels else {}
    assert from_service(to_service(peer, extra, ["10.9.9.9"]), (4, 6)) == read


@pytest.mark.parametrize(
    ("versions", "urls"),
    [
        ((4,), ("http://10.0.0.3:1",)),
        ((6,), ("http://[fd00::3]:1", "http://[fe80::3%7]:1")),
        ((4, 6), ("http://10.0.0.3:1", "http://[fd00::3]:1", "http://[fe80::3%7]:1")),
    ],
)
def test_addresses_of_the_wanted_versions_are_used_and_link_local_ones_come_last(
    versions: tuple[int, ...], urls: tuple[str, ...]
) -> None:
    info = AsyncServiceInfo(
        SERVICE_TYPE,
        f"a.{SERVICE_TYPE}",
        port=1,
        properties={"id": "a"},
        addresses=[socket.inet_pton(socket.AF_INET6, each) for each in ("fe80::3", "fd00::3")]
        + [socket.inet_aton("10.0.0.3")],
        interface_index=7,
    )
    assert from_service(info, versions).urls == urls


@pytest.mark.parametrize(
    ("address", "link_count", "is_usable"),
    [
        ("10.0.0.3", 1, True),
        ("169.254.7.7", 1, True),
        ("169.254.7.7", 2, False),  # on which of the links?
        ("169.254.169.254", 1, False),
        ("fd00:ec2::254", 1, False),
        ("127.0.0.1", 1, False),
        ("::1", 1, False),
        ("0.0.0.0", 1, False),
        ("fe80::3", 1, False),  # not announced on a link
        ("fe80::3%7", 2, True),
    ],
)
def test_only_addresses_of_other_hosts_are_used(address: str, link_count: int, is_usable: bool) -> None:
    plain, _, scope = address.partition("%")
    info = AsyncServiceInfo(
        SERVICE_TYPE,
        f"a.{SERVICE_TYPE}",
        port=1,
        properties={"id": "a"},
        addresses=[socket.inet_pton(socket.AF_INET6 if ":" in plain else socket.AF_INET, plain)],
        interface_index=int(scope) if scope else None,
    )
    attachment = NetworkAttachment(("10.0.0.2",), ("10.0.0.2",), link_count)

    def read() -> Peer:
        return from_service(info, (4, 6), attachment.dialled, has_one_link=attachment.links == 1)

    if is_usable:
        assert attachment.dialled is read().dialled is AddressKinds.ROUTED | AddressKinds.LINK_LOCAL
    else:
        with pytest.raises(ValueError, match="no usable address"):
            read()


def test_loopback_addresses_are_used_only_on_loopback() -> None:
    assert AddressKinds.LOOPBACK in NetworkAttachment(("127.0.0.1",), ("127.0.0.1", "::1")).dialled
    assert AddressKinds.LOOPBACK not in NetworkAttachment(("127.0.0.1", 2), ("127.0.0.1", "fe80::1")).dialled


@given(st.text(min_size=1, max_size=60))
def test_any_id_becomes_a_valid_service_name(identity: str) -> None:
    info = to_service(Peer(identity, ("http://10.0.0.3:1",)), {}, ())
    instance = info.name.removesuffix(f".{SERVICE_TYPE}")
    assert instance.isascii()
    assert "." not in instance
    assert 0 < len(instance) <= 63


def test_a_host_that_does_not_fit_into_a_service_is_an_error() -> None:
    with pytest.raises(ValueError, match="longer than 255 bytes"):
        to_service(Peer("a" * 300, ("http://10.0.0.3:1",)), {}, ())
    with pytest.raises(ValueError, match="no URL"):
        to_service(Peer("a", ()), {}, ())


def test_interfaces_are_chosen_by_name_or_address(monkeypatch: pytest.MonkeyPatch) -> None:
    def adapters(*those: tuple[str, int, list[str]]) -> None:
        made = [
            ifaddr.Adapter(
                name,
                name,
                [ifaddr.IP((each, 0, 0) if ":" in each else each, 24, name) for each in addresses],
                index,
            )
            for name, index, addresses in those
        ]
        monkeypatch.setattr(ifaddr, "get_adapters", lambda: made)

    loopback = ("lo", 1, ["127.0.0.1", "::1"])
    adapters(loopback, ("eth0", 2, ["10.0.0.3", "fd00::3", "fe80::3"]), ("veth1", 3, ["fe80::ee"]))
    assert find_attachment((), (4, 6)) == NetworkAttachment(("10.0.0.3", 2), ("10.0.0.3", "fd00::3", "fe80::3"))
    assert find_attachment((), (4,)) == NetworkAttachment(("10.0.0.3",), ("10.0.0.3",))
    assert find_attachment((), (6,)) == NetworkAttachment((2,), ("fd00::3", "fe80::3"))
    assert find_attachment(["veth1"], (4, 6)) == NetworkAttachment((3,), ("fe80::ee",))
    assert find_attachment(["10.0.0.3"], (4, 6)) == NetworkAttachment(("10.0.0.3",), ("10.0.0.3",))
    assert find_attachment(["eth7"], (4, 6)) == NetworkAttachment((), ())
    adapters(loopback)
    assert find_attachment((), (4, 6)) == NetworkAttachment((1, "127.0.0.1"), ("127.0.0.1", "::1"))


@pytest.mark.parametrize(
    ("config", "line"),
    [
        (
            {"interface": "eth0"},
            "interface: unknown option; did you mean interfaces? there are: interfaces, ip_version, labels",
        ),
        (
            {"interfaces": "eth0"},
            "interfaces: a list of names or addresses of interfaces, as in [\"eth0\"], not 'eth0'",
        ),
        ({"interfaces": []}, 'interfaces: a list of names or addresses of interfaces, as in ["eth0"], not []'),
        (
            {"interfaces": ["eth0", "a/b"]},
            "interfaces[1]: the name or the address of an interface, such as eth0 or 10.0.0.2, not 'a/b'",
        ),
        ({"ip_version": 4}, "ip_version: one of all, v4, v6, not 4"),
        ({"labels": ["z"]}, "labels: a table of strings, as in {zone = \"a\"}, not ['z']"),
        ({"labels": {"zone=": "z"}}, "labels: names of letters, digits and . _ / -, not 'zone='"),
        ({"labels": {"zone": 1}}, "labels.zone: a string that is not empty, not 1"),
    ],
)
def test_the_error_for_a_wrong_option_is_one_line(config: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError) as raised:
        MdnsRouter.from_config(config)
    assert str(raised.value) == line


def test_the_router_is_found_by_name() -> None:
    options = {"interfaces": ["eth0", "10.0.0.2"], "ip_version": "v4", "labels": {"zone": "z"}}
    assert isinstance(Plugins().router("mdns", options), MdnsRouter)
    assert isinstance(Plugins().router("mdns", {}), MdnsRouter)
