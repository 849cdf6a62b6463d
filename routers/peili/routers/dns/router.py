"""A router whose members DNS names: each address of a name, or each target of SRV records."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncGenerator, Collection, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, Self
from urllib.parse import urlsplit

import ifaddr
from typing_extensions import override

from peili.mirror import Backoff, Broadcast, ConfigError, Context, Limits, MembershipRouter, Options, Peer, Tasks
from peili.routers.dns.members import AddressFinder, Found, MemberFinder, ServiceFinder
from peili.routers.dns.queries import DnsClient, QueryFailed, is_name
from peili.routers.member_urls import MemberUrls, read_member_urls

_LOG = logging.getLogger(__name__)
_CONFIRMATIONS = 3  # answers in a row, each after the one before has expired, until "no members" is believed
_RECORD_TYPES: Mapping[str, tuple[str, ...]] = {"all": ("A", "AAAA"), "v4": ("A",), "v6": ("AAAA",)}
_PORT = "a port from 1 to 65535"


@dataclass(frozen=True, slots=True)
class DnsOptions:
    """The checked options of `DnsRouter`.

    Attributes:
        name: The name whose addresses, or whose SRV records, are the members.
        port: The port of the members' peer doors; None if SRV records say it.
        urls: What the URLs of the members have in common.
        record_types: The types of address records to use.
        servers: The servers to ask; empty for those of ``/etc/resolv.conf``.
        min_ttl: Seconds that an answer is used at least.
        max_ttl: Seconds that an answer is used at most.
        timeout: Seconds until a question fails.
    """

    name: str
    port: int | None
    urls: MemberUrls
    record_types: tuple[str, ...] = ("A", "AAAA")
    servers: tuple[tuple[str, int], ...] = ()
    min_ttl: float = 5.0
    max_ttl: float = 300.0
    timeout: float = 5.0

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Check the options in `config`. Raises ConfigError."""
        known = ("name", "port", "srv", "scheme", "path", "ip_version", "tls_name", "any_address", "servers")
        options = Options(config, *known, "min_ttl", "max_ttl", "timeout")
        name, port = _read_name(options)
        seconds = "seconds, 0.1 or more"
        min_ttl = options.number("min_ttl", 5.0, minimum=0.1, expected=seconds)
        max_ttl = options.number("max_ttl", max(300.0, min_ttl), minimum=0.1, expected=seconds)
        if max_ttl < min_ttl:
            raise options.wrong("max_ttl", f"seconds, {min_ttl:g} (min_ttl) or more")
        servers = options.texts("servers", (), expected="a list of addresses of DNS servers")
        return cls(
            name,
            port,
            read_member_urls(options),
            _RECORD_TYPES[options.choice("ip_version", _RECORD_TYPES, "all")],
            tuple(_read_server(options, f"servers[{index}]", each) for index, each in enumerate(servers)),
            min_ttl,
            max_ttl,
            options.number("timeout", 5.0, minimum=0.1, expected=seconds),
        )

    def create_finder(self) -> MemberFinder:
        """Return the object that asks for the members."""
        if self.port is None:
            return ServiceFinder(self.name, self.urls, self.record_types)
        return AddressFinder(self.name, self.port, self.urls, self.record_types)


def _read_name(options: Options) -> tuple[str, int | None]:
    if ("name" in options) == ("srv" in options):
        raise ConfigError("name", "either name and port, or srv, a name that has SRV records")
    key = "name" if "name" in options else "srv"
    expected = "a domain name such as " + ("peili.example.com" if key == "name" else "_peili._tcp.example.com")
    name = options.text(key, expected=expected)
    if not is_name(name):
        raise options.wrong(key, expected)
    if key == "srv":
        if "port" in options:
            raise ConfigError("port", "nothing: SRV records say the port")
        return name, None
    return name, options.integer("port", minimum=1, maximum=65535, expected=_PORT)


def _read_server(options: Options, place: str, text: str) -> tuple[str, int]:
    """Return the address and the port in, for example, ``10.0.0.2:53`` or ``fd00::1``."""
    with suppress(ValueError):
        return str(ip_address(text)), 53
    with suppress(ValueError):
        parts = urlsplit(f"//{text}")
        if parts.netloc == text and parts.hostname and parts.port:
            return str(ip_address(parts.hostname)), parts.port
    raise options.wrong(place, "the address of a DNS server, such as 10.0.0.2 or [fd00::1]:53", text)


class DnsRouter(MembershipRouter):
    """A router whose members DNS names. This host may be one of them.

    With ``name`` and ``port``, each address (A and AAAA) of the name is a member. With ``srv``, each target of the SRV
    records is one, with a URL for each of its addresses.

    The router asks again when an answer expires, within bounds. If the servers do not answer, the last members stay. If
    DNS says that there are no members any more, the last members stay until three answers in a row say so: a member
    that is gone costs little, but a host without members fetches everything from upstream. The first answer of all is
    believed at once.
    """

    def __init__(self, options: DnsOptions) -> None:
        self._options = options
        self._log: logging.Logger = _LOG
        self._limits = Limits()
        self._this_host: Peer | None = None  # known once its peer door answers
        self._listening = Broadcast()

    @override
    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Create a router from its options.

        They are either ``name`` and ``port``, or ``srv``, a name with SRV records; ``scheme`` (``http``) and ``path``
        of the members' peer doors; ``ip_version``, which is ``"v4"``, ``"v6"`` or ``"all"``; ``tls_name``, which all
        certificates show; ``any_address`` (false), which allows addresses such as loopback; ``servers``, a list of DNS
        servers (those of ``/etc/resolv.conf``); ``min_ttl`` (5) and ``max_ttl`` (300), the bounds of the time that an
        answer is used, and ``timeout`` (5), in seconds.
        """
        return cls(DnsOptions.from_config(config))

    @override
    @asynccontextmanager
    async def run(self, context: Context) -> AsyncGenerator[None, None]:
        self._log, self._limits = context.log, context.limits
        async with super().run(context), Tasks(context.log) as tasks:
            tasks.start(self._recognise(context))
            try:
                yield
            finally:
                self._this_host = None

    @override
    async def members(self) -> AsyncGenerator[Collection[Peer], None]:
        rounds = _Rounds(self._options, self._limits, self._log)
        while True:
            listening = self._listening.next_change
            delay = await rounds.run()
            if rounds.peers is not None:
                own = _addresses_of_this_host() if self._this_host is not None else frozenset[str]()
                yield [peer for peer in rounds.peers if not self._is_this_host(peer, own)]
            with suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await listening.wait()

    async def _recognise(self, context: Context) -> None:
        self._this_host = await context.listening()
        self._listening.notify()

    def _is_this_host(self, peer: Peer, own_addresses: Collection[str]) -> bool:
        """Return whether one of the peer's URLs is this host's, or leads to its port at an address of this machine.

        If the answer is wrong, for example because of address translation, this host is recognised by its id.
        """
        if self._this_host is None:
            return False
        ports = {urlsplit(url).port for url in self._this_host.urls}
        parts = [urlsplit(url) for url in peer.urls]
        at_own_address = any(each.hostname in own_addresses and each.port in ports for each in parts)
        return at_own_address or not set(peer.urls).isdisjoint(self._this_host.urls)


class _Rounds:
    """Asks for the members, round by round, and decides what to believe.

    Attributes:
        peers: The members; None if nothing is known yet.
    """

    def __init__(self, options: DnsOptions, limits: Limits, log: logging.Logger) -> None:
        self.peers: Collection[Peer] | None = None
        self._options = options
        self._log = log
        self._finder = options.create_finder()
        self._backoff = Backoff(limits.backoff_min, limits.backoff_max, jitter=0.25)
        self._empty_answers = 0
        self._problem = ""  # the last problem that was logged

    async def run(self) -> float:
        """Ask once. Returns the seconds until the next round."""
        try:
            found = await self._finder.find(DnsClient(self._options.servers, self._options.timeout))
        except QueryFailed as error:
            self._report("DNS does not answer, the last known members stay", str(error))
            return self._backoff.next_delay()
        if found.is_incomplete:
            self._report("DNS does not answer everything, the last known addresses stay", found.problem)
            self.peers = found.peers
            return self._backoff.next_delay()
        self._backoff.reset()
        self._believe(found)
        ttl = min(max(found.ttl, self._options.min_ttl), self._options.max_ttl)
        return ttl * random.uniform(1, 1.1)  # noqa: S311 - spreads hosts in time, no secret

    def _believe(self, found: Found) -> None:
        """Take over the members. If there were some before, an answer without any has to be confirmed."""
        self._empty_answers = 0 if found.peers else self._empty_answers + 1
        if found.peers or not self.peers or self._empty_answers >= _CONFIRMATIONS:
            self.peers = found.peers
            self._report("DNS names no members" if not found.peers else "DNS names not all members", found.problem)

    def _report(self, what: str, problem: str) -> None:
        """Log a problem once, until it is over or another one comes."""
        kind = what if problem else ""
        if kind and kind != self._problem:
            self._log.warning("%s: %s", what, problem)
        self._problem = kind


def _addresses_of_this_host() -> frozenset[str]:
    found = (each.ip for adapter in ifaddr.get_adapters() for each in adapter.ips)
    texts = (each.partition("%")[0] if isinstance(each, str) else each[0].partition("%")[0] for each in found)
    return frozenset(str(ip_address(each)) for each in texts)
