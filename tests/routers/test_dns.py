"""The router whose members DNS names, against a real DNS server on loopback."""

from __future__ import annotations

import asyncio
import builtins
import importlib
import sys
from typing import Any

import dns.asyncresolver
import dns.resolver
import pytest
from tests.support.logs import warnings
from tests.support.name_server import HAS_NSD, NameServer, name_server
from tests.support.neighbours import Neighbour, entered, holder_ids, neighbours, peer_ids
from tests.support.waiting import until

from peili.mirror import ConfigError, Digest, Limits, Peer, Plugins
from peili.routers.dns import DnsRouter
from peili.routers.dns import router as dns_router
from peili.routers.dns.queries import DnsClient, QueryFailed

pytestmark = pytest.mark.anyio
needs_nsd = pytest.mark.skipif(not HAS_NSD, reason="not installed: nsd")
SOON = Limits(lookup_timeout=20, backoff_min=0.1, backoff_max=0.1)
KEY = Digest("sha256:" + "a" * 64)
ADDRESSES = ("peili A 10.0.0.1", "peili A 10.0.0.2")
SERVICE = ("_peili._tcp SRV 1 1 5051 one", "one A 10.0.0.1")


def by_name(server: NameServer, **options: Any) -> DnsRouter:
    """Return a router that asks for the addresses of peili.test."""
    return DnsRouter.from_config(
        {"name": "peili.test", "port": 5051, "servers": server.servers, "min_ttl": 0.1, "timeout": 20, **options}
    )


def by_service(server: NameServer, **options: Any) -> DnsRouter:
    """Return a router that asks for the SRV records of _peili._tcp.test."""
    return DnsRouter.from_config(
        {"srv": "_peili._tcp.test", "servers": server.servers, "min_ttl": 0.1, "timeout": 20, **options}
    )


def urls(router: DnsRouter) -> list[tuple[str, ...]]:
    return [peer.urls for peer in router.peers()]


@needs_nsd
async def test_each_address_is_a_member_and_changes_are_followed() -> None:
    async with name_server(*ADDRESSES) as server, entered(router := by_name(server)):
        await until(router.ready)
        assert peer_ids(router) == ["http://10.0.0.1:5051", "http://10.0.0.2:5051"]
        await server.set("peili A 10.0.0.2", "peili A 10.0.0.3", "peili AAAA fd00::3")
        await until(lambda: len(router.peers()) == 3)
        assert urls(router) == [("http://10.0.0.2:5051",), ("http://10.0.0.3:5051",), ("http://[fd00::3]:5051",)]


@needs_nsd
async def test_an_answer_is_used_until_it_expires(caplog: pytest.LogCaptureFixture) -> None:
    loop = asyncio.get_running_loop()
    async with name_server(*ADDRESSES, ttl=1) as server:
        started = loop.time()
        async with entered(router := by_name(server)):
            await until(router.ready)
            await server.set("peili A 10.0.0.9")
            await until(lambda: urls(router) == [("http://10.0.0.9:5051",)])
            assert loop.time() - started > 0.8, "it was asked for before it expired"
    async with name_server(*ADDRESSES, ttl=3600) as server, entered(router := by_name(server, max_ttl=0.2)):
        await until(router.ready)
        await server.set("peili A 10.0.0.9")
        await until(lambda: urls(router) == [("http://10.0.0.9:5051",)])
    assert warnings(caplog) == []


@needs_nsd
async def test_the_last_members_stay_while_the_server_is_gone(caplog: pytest.LogCaptureFixture) -> None:
    async with name_server(*ADDRESSES) as server, entered(router := by_name(server, timeout=0.3), limits=SOON):
        await until(router.ready)
        await server.stop()
        await until(lambda: len(warnings(caplog)) == 1)
        await asyncio.sleep(1)  # more rounds fail, and nothing is logged
        assert peer_ids(router) == ["http://10.0.0.1:5051", "http://10.0.0.2:5051"]
        await server.set("peili A 10.0.0.7")
        await server.start()
        await until(lambda: urls(router) == [("http://10.0.0.7:5051",)])
    [line] = warnings(caplog)
    assert line.startswith("DNS does not answer, the last known members stay: no answer for peili.test A")
    assert "\n" not in line


@needs_nsd
async def test_a_server_that_comes_later_is_found(tmp_path: Any) -> None:
    server = NameServer(tmp_path)
    async with entered(router := by_name(server, timeout=0.3), limits=SOON):
        await server.set(*ADDRESSES)
        assert not router.ready(), "nothing is known yet"
        await server.start()
        try:
            await until(router.ready)
            assert len(router.peers()) == 2
        finally:
            await server.stop()


@needs_nsd
@pytest.mark.parametrize("left", [(), ("peili TXT text",)], ids=["no such name", "no such record"])
async def test_no_members_any_more_is_believed_after_three_answers(
    left: tuple[str, ...], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with name_server(*ADDRESSES) as server, entered(router := by_name(server)):
        await until(router.ready)
        monkeypatch.setattr(dns_router, "_CONFIRMATIONS", 10**6)
        await server.set(*left)
        await asyncio.sleep(0.5)  # several answers say that there is no member
        assert len(router.peers()) == 2
        await server.set(*ADDRESSES)
        await asyncio.sleep(0.3)  # an answer with members starts the count again
        monkeypatch.setattr(dns_router, "_CONFIRMATIONS", 3)
        assert warnings(caplog) == []
        await server.set(*left)
        await until(lambda: not router.peers())
        await until(lambda: warnings(caplog))
    what = "has no address" if left else "does not exist"
    assert warnings(caplog) == [f"DNS names no members: peili.test {what}"]


@needs_nsd
async def test_a_name_without_members_is_believed_at_first(caplog: pytest.LogCaptureFixture) -> None:
    async with name_server() as server, entered(router := by_name(server)):
        await until(router.ready)
        assert list(router.peers()) == []
        await until(lambda: warnings(caplog))
        await server.set(*ADDRESSES)
        await until(lambda: len(router.peers()) == 2)
    assert warnings(caplog) == ["DNS names no members: peili.test does not exist"]


@needs_nsd
async def test_each_target_is_a_member_with_all_its_addresses() -> None:
    records = (
        "_peili._tcp SRV 20 1 5052 two",
        "_peili._tcp SRV 10 1 5051 one",
        "_peili._tcp SRV 10 9 5053 Three",
        "_peili._tcp SRV 90 1 5051 one",
        "one A 10.0.0.1",
        "one AAAA fd00::1",
        "two A 10.0.0.2",
        "three AAAA fd00::3",
    )
    async with name_server(*records) as server, entered(router := by_service(server, path="/peili")):
        await until(router.ready)
        assert list(router.peers()) == [
            Peer("three.test:5053", ("http://[fd00::3]:5053/peili",)),
            Peer("one.test:5051", ("http://10.0.0.1:5051/peili", "http://[fd00::1]:5051/peili")),
            Peer("two.test:5052", ("http://10.0.0.2:5052/peili",)),
        ]
        await server.set("_peili._tcp SRV 0 0 5051 one", "one A 10.0.0.11")
        await until(lambda: urls(router) == [("http://10.0.0.11:5051/peili",)])
        await server.set("_peili._tcp SRV 0 0 0 .")
        await until(lambda: not router.peers())


@needs_nsd
async def test_the_certificate_shows_the_name_of_the_target_or_a_common_one() -> None:
    async with name_server(*SERVICE, *ADDRESSES) as server:
        async with entered(router := by_service(server, scheme="https")):
            await until(router.ready)
            assert list(router.peers()) == [Peer("one.test:5051", ("https://10.0.0.1:5051",), "one.test")]
        async with entered(router := by_service(server, scheme="https", tls_name="peili.internal")):
            await until(router.ready)
            assert [peer.tls_name for peer in router.peers()] == ["peili.internal"]
        async with entered(router := by_name(server, scheme="https", tls_name="peili.internal")):
            await until(router.ready)
            assert [peer.tls_name for peer in router.peers()] == ["peili.internal"] * 2


@needs_nsd
@pytest.mark.parametrize(("version", "expected"), [("v4", "http://10.0.0.1:5051"), ("v6", "http://[fd00::1]:5051")])
async def test_only_addresses_of_the_wanted_version_are_used(version: str, expected: str) -> None:
    records = (*SERVICE, "one AAAA fd00::1", "peili A 10.0.0.1", "peili AAAA fd00::1")
    async with name_server(*records) as server:
        for router in (by_name(server, ip_version=version), by_service(server, ip_version=version)):
            async with entered(router):
                await until(router.ready)
                assert urls(router) == [(expected,)]


@needs_nsd
async def test_addresses_that_no_request_can_be_sent_to_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    records = ("peili A 0.0.0.0", "peili A 224.0.0.1", "peili AAAA fe80::1", "peili AAAA ::", "peili AAAA ff02::1")
    async with name_server(*records, "peili A 10.0.0.1") as server, entered(router := by_name(server)):
        await until(router.ready)
        assert urls(router) == [("http://10.0.0.1:5051",)]
        await server.set(*records)
        await until(lambda: warnings(caplog))
    assert warnings(caplog) == ["DNS names no members: peili.test has no address that other hosts can reach"]


@needs_nsd
async def test_a_hundred_members_are_found_although_their_answer_is_truncated() -> None:
    numbers = range(1, 101)
    records = [f"peili A 10.0.1.{number}" for number in numbers]
    records += [f"peili AAAA fd00::{number}" for number in numbers]
    async with name_server(*records) as server, entered(router := by_name(server)):
        await until(router.ready)
        assert len(router.peers()) == 200


@needs_nsd
@pytest.mark.parametrize("count", [14, 100], ids=["addresses left out", "truncated"])
@pytest.mark.parametrize("options", ["", "minimal-responses: yes"])
async def test_all_addresses_of_targets_are_found_although_they_do_not_fit(count: int, options: str) -> None:
    numbers = range(1, count + 1)
    records = [f"_peili._tcp SRV 0 0 5051 host-{number}" for number in numbers]
    records += [f"host-{number} A 10.0.1.{number}" for number in numbers]
    records += [f"host-{number} AAAA fd00::{number}" for number in numbers]
    async with name_server(*records, options=options) as server, entered(router := by_service(server)):
        await until(router.ready)
        assert {peer.id: len(peer.urls) for peer in router.peers()} == {f"host-{n}.test:5051": 2 for n in numbers}


@needs_nsd
async def test_a_target_in_a_zone_that_does_not_answer_keeps_its_addresses(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with name_server(*SERVICE) as server, entered(router := by_service(server, timeout=1), limits=SOON):
        await until(router.ready)
        # This server refuses names in other zones.
        await server.set(*SERVICE, "_peili._tcp SRV 2 0 5051 host.elsewhere.")
        await until(lambda: warnings(caplog))
        assert peer_ids(router) == ["one.test:5051"]
        await server.set(*SERVICE, "_peili._tcp SRV 2 0 5052 two", "two A 10.0.0.2")
        await until(lambda: peer_ids(router) == ["one.test:5051", "two.test:5052"])
    [line] = warnings(caplog)
    assert line.startswith(
        "DNS does not answer everything, the last known addresses stay: no answer for host.elsewhere."
    )


@needs_nsd
async def test_a_target_without_an_address_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    records = (*SERVICE, "_peili._tcp SRV 2 0 5051 missing")
    async with name_server(*records) as server, entered(router := by_service(server)):
        await until(router.ready)
        assert peer_ids(router) == ["one.test:5051"]
        await until(lambda: warnings(caplog))
    assert warnings(caplog) == ["DNS names not all members: missing.test. does not exist"]


@needs_nsd
async def test_another_server_is_asked_if_the_first_one_does_not_answer() -> None:
    async with name_server(*ADDRESSES) as server:
        servers = ["127.0.0.1:9", f"[::1]:{server.port}"]
        async with entered(router := by_name(server, servers=servers)):
            await until(router.ready)
            assert len(router.peers()) == 2


@needs_nsd
async def test_this_host_is_recognised_by_its_address_and_port() -> None:
    this = Peer("this-host", ("http://10.99.0.1:5051",))
    records = ("peili A 127.0.0.1", "peili AAAA ::1", "peili A 10.99.0.1", "peili A 10.0.0.2")
    async with name_server(*records) as server:
        async with entered(router := by_name(server), peer=this):
            await until(lambda: urls(router) == [("http://10.0.0.2:5051",)])
        async with entered(router := by_name(server, port=5052), peer=this):
            await until(router.ready)
            assert len(router.peers()) == 4, "another program of this machine is another host"


@needs_nsd
async def test_content_is_found_on_the_members() -> None:
    async with neighbours(Neighbour("one", KEY), Neighbour("two")) as (one, two):
        ports = [peer.urls[0].rpartition(":")[2] for peer in (one, two)]
        records = [f"_peili._tcp SRV {n} 0 {port} host-{n}" for n, port in enumerate(ports)]
        records += ["host-0 A 127.0.0.1", "host-1 A 127.0.0.1"]
        async with name_server(*records) as server:
            async with entered(router := by_service(server, any_address=True)):
                await until(router.ready)
                assert await holder_ids(router, KEY) == [f"host-0.test:{ports[0]}"]
            async with entered(router := by_service(server)):
                await until(router.ready)
                assert await holder_ids(router, KEY) == [], "by default, DNS can't lead to loopback"


@needs_nsd
async def test_the_search_list_completes_a_name(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async with name_server(*ADDRESSES) as server:
        client = DnsClient([("127.0.0.1", server.port)], 20)
        assert not (await client.addresses("elsewhere.test", "A")).exists
        file = tmp_path / "resolv.conf"
        file.write_text("nameserver 127.0.0.1\nsearch other.test test\n")
        resolver = dns.asyncresolver.Resolver(str(file))
        resolver.port = server.port

        def create(**_: object) -> dns.asyncresolver.Resolver:
            return resolver

        monkeypatch.setattr(dns.asyncresolver, "Resolver", create)
        assert (await DnsClient([], 20).addresses("peili", "A")).addresses == ("10.0.0.1", "10.0.0.2")
        with pytest.raises(QueryFailed):
            await DnsClient([], 2).addresses("peili.", "A")


@needs_nsd
async def test_a_question_that_is_cancelled_ends_whatever_happens_at_the_same_moment() -> None:
    loop = asyncio.get_running_loop()
    async with name_server(*ADDRESSES) as server:
        client = DnsClient([("127.0.0.1", server.port)], 60)
        started = loop.time()
        await client.addresses("peili.test", "A")
        usual = loop.time() - started
        for part in range(200):
            question = asyncio.create_task(client.addresses("peili.test", "A"))
            await asyncio.sleep(usual * part / 100)
            if not question.done():
                question.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await question


async def test_no_configured_server_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: object) -> None:
        raise dns.resolver.NoResolverConfiguration

    monkeypatch.setattr(dns.asyncresolver, "Resolver", fail)
    with pytest.raises(QueryFailed, match=r"^/etc/resolv\.conf names no server$"):
        DnsClient([], 1)


EITHER = "name: either name and port, or srv, a name that has SRV records"
NAME: dict[str, Any] = {"name": "peili.test", "port": 5051}
SERVER = "the address of a DNS server, such as 10.0.0.2 or [fd00::1]:53"
KNOWN = "name, port, srv, scheme, path, ip_version, tls_name, any_address, servers, min_ttl, max_ttl, timeout"
WRONG: list[tuple[dict[str, Any], str]] = [
    ({}, EITHER),
    ({**NAME, "srv": "_peili._tcp.test"}, EITHER),
    ({"name": "10.0.0.1", "port": 1}, "name: a domain name such as peili.example.com, not '10.0.0.1'"),
    ({"name": "a..b", "port": 1}, "name: a domain name such as peili.example.com, not 'a..b'"),
    ({"name": ".", "port": 1}, "name: a domain name such as peili.example.com, not '.'"),
    ({"name": 7, "port": 1}, "name: a domain name such as peili.example.com, not 7"),
    ({"srv": "a" * 64}, f"srv: a domain name such as _peili._tcp.example.com, not {'a' * 64!r}"),
    ({"srv": "_peili._tcp.test", "port": 1}, "port: nothing: SRV records say the port"),
    ({"name": "peili.test"}, "port: a port from 1 to 65535"),
    ({**NAME, "port": 0}, "port: a port from 1 to 65535, not 0"),
    ({**NAME, "scheme": "ftp"}, "scheme: one of http, https, not 'ftp'"),
    ({**NAME, "path": "peili"}, "path: a path such as /peili, not 'peili'"),
    ({**NAME, "path": "/a?b"}, "path: a path such as /peili, not '/a?b'"),
    ({**NAME, "ip_version": "4"}, "ip_version: one of all, v4, v6, not '4'"),
    (
        {**NAME, "tls_name": "*.test"},
        "tls_name: not a name for a certificate: '*.test'; expected a host name or an IP address",
    ),
    ({**NAME, "servers": "10.0.0.2"}, "servers: a list of addresses of DNS servers, not '10.0.0.2'"),
    ({**NAME, "servers": ["ns.test"]}, f"servers[0]: {SERVER}, not 'ns.test'"),
    ({**NAME, "servers": ["10.0.0.2", "10.0.0.2:x"]}, f"servers[1]: {SERVER}, not '10.0.0.2:x'"),
    ({**NAME, "min_ttl": 0}, "min_ttl: seconds, 0.1 or more, not 0"),
    ({**NAME, "max_ttl": 4}, "max_ttl: seconds, 5 (min_ttl) or more, not 4"),
    ({**NAME, "timeout": 0}, "timeout: seconds, 0.1 or more, not 0"),
    ({**NAME, "server": []}, f"server: unknown option; did you mean servers? there are: {KNOWN}"),
]


@pytest.mark.parametrize(("config", "line"), WRONG)
def test_the_error_for_a_wrong_option_is_one_line(config: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError) as raised:
        DnsRouter.from_config(config)
    assert str(raised.value) == line


def test_the_router_is_found_by_name() -> None:
    options = {
        "name": "peili.test.",
        "port": 1,
        "path": "/peili/",
        "servers": ["fd00::1", "[fd00::1]:53", "10.0.0.2:1"],
    }
    assert isinstance(Plugins().router("dns", options), DnsRouter)


def test_without_dnspython_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without_dns(name: str, *arguments: Any, **options: Any) -> Any:
        if name.startswith("dns."):
            raise ModuleNotFoundError("No module named 'dns'")
        return real(name, *arguments, **options)

    for name in [each for each in sys.modules if each.startswith("peili.routers.dns")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", without_dns)
    with pytest.raises(ImportError, match=r"^the router dns needs dnspython: pip install 'peili\[dns\]'$"):
        importlib.import_module("peili.routers.dns")
