"""Finds the members: the addresses of a name, or the targets of SRV records with their addresses."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv6Address, ip_address

from typing_extensions import override

from peili.mirror import Peer
from peili.routers.dns.queries import Answer, DnsClient, QueryFailed, ServiceAnswer
from peili.routers.member_urls import MemberUrls

MAX_MEMBERS = 1024
"""More members are not used."""
_MAX_QUESTIONS = 16  # at the same time


@dataclass(frozen=True, slots=True)
class Found:
    """What one round of questions has found.

    Attributes:
        peers: The members, sorted. Empty if DNS has none.
        ttl: Seconds after which to ask again.
        problem: Why this is not all, or why it is nothing: one line. Empty if there is no problem.
        is_incomplete: Whether a server did not answer a question. The last answer to it is used, if there is one.
    """

    peers: Sequence[Peer]
    ttl: float
    problem: str = ""
    is_incomplete: bool = False


class MemberFinder(ABC):
    """Finds the members, round by round. It keeps the last good answers. For use by one task."""

    @abstractmethod
    async def find(self, client: DnsClient) -> Found:
        """Ask for the members.

        Raises:
            QueryFailed: Nothing is known about the members, because the servers do not answer.
        """


class AddressFinder(MemberFinder):
    """Each address of a name is a member.

    Args:
        name: The name.
        port: The port of the members' peer doors.
        urls: The rest of their URLs.
        record_types: The types of address records to use: ``A``, ``AAAA`` or both.
    """

    def __init__(self, name: str, port: int, urls: MemberUrls, record_types: tuple[str, ...]) -> None:
        self._port = port
        self._urls = urls
        self._host = HostAddresses(name, record_types)

    @override
    async def find(self, client: DnsClient) -> Found:
        await self._host.ask(client)
        urls = [self._urls.url(each, self._port) for each in self._host.addresses[:MAX_MEMBERS]]
        peers = [Peer(url, (url,), self._urls.tls_name, dialled=self._urls.dialled) for url in urls]
        return Found(peers, self._host.ttl, self._host.problem, self._host.is_incomplete)


class ServiceFinder(MemberFinder):
    """Each target of the SRV records of a name is a member, with a URL for each of its addresses.

    Priorities and weights only sort the members. They do not choose among them: every target may have the content.

    Args:
        name: The name, for example ``_peili._tcp.example.com``.
        urls: What the URLs of the members have in common. Without a `tls_name`, the certificate of an HTTPS member must
            show the name of its target.
        record_types: The types of address records to use.
    """

    def __init__(self, name: str, urls: MemberUrls, record_types: tuple[str, ...]) -> None:
        self._name = name
        self._urls = urls
        self._record_types = record_types
        self._hosts: dict[str, HostAddresses] = {}

    @override
    async def find(self, client: DnsClient) -> Found:
        answer = await client.service(self._name)
        targets = answer.targets[:MAX_MEMBERS]
        await self._ask_for_hosts(client, answer)
        peers = [self._peer(target, port) for target, port in targets if self._hosts[target].addresses]
        incomplete = [each for each in self._hosts.values() if each.is_incomplete]
        if incomplete and not peers:
            raise QueryFailed(incomplete[0].problem)
        ttl = min([answer.ttl, *(each.ttl for each in self._hosts.values())])
        if not answer.targets:
            return Found((), ttl, f"{self._name} {'has no SRV record' if answer.exists else 'does not exist'}")
        problems = [each.problem for each in (*incomplete, *self._hosts.values()) if each.problem]
        return Found(peers, ttl, next(iter(problems), ""), bool(incomplete))

    async def _ask_for_hosts(self, client: DnsClient, answer: ServiceAnswer) -> None:
        """Make `_hosts` the hosts of the targets. Those whose addresses the server has not added are asked for."""
        names = dict.fromkeys(target for target, _ in answer.targets[:MAX_MEMBERS])
        types = self._record_types
        self._hosts = {name: self._hosts.get(name) or HostAddresses(f"{name}.", types) for name in names}
        turns = asyncio.Semaphore(_MAX_QUESTIONS)
        async with asyncio.TaskGroup() as tasks:
            for name, host in self._hosts.items():
                if not host.take(answer.addresses.get(name)):
                    tasks.create_task(_ask_in_turn(turns, host, client))

    def _peer(self, target: str, port: int) -> Peer:
        urls = tuple(self._urls.url(each, port) for each in self._hosts[target].addresses)
        default = target if self._urls.scheme == "https" else None
        return Peer(f"{target}:{port}", urls, self._urls.tls_name or default, dialled=self._urls.dialled)


async def _ask_in_turn(turns: asyncio.Semaphore, host: HostAddresses, client: DnsClient) -> None:
    async with turns:
        try:
            await host.ask(client)
        except QueryFailed as error:
            host.problem, host.is_incomplete = str(error), True


@dataclass(slots=True)
class HostAddresses:
    """The addresses of one host name. They are asked for again when they have expired.

    Attributes:
        name: The host name.
        record_types: The types of records to ask for.
        addresses: The last known addresses that other hosts can reach, IPv4 before IPv6.
        ttl: Seconds until they expire.
        problem: Why there are none, or why they are not all known, in one line.
        is_incomplete: Whether a question was not answered.
    """

    name: str
    record_types: tuple[str, ...]
    addresses: tuple[str, ...] = ()
    ttl: float = 0.0
    problem: str = ""
    is_incomplete: bool = False
    _answers: dict[str, Answer] = field(default_factory=dict[str, Answer])
    _expires: float = 0.0

    def take(self, added: Answer | None) -> bool:
        """Use the addresses that a server has added to another answer, or those that have not expired.

        Returns:
            Whether there are any. If not, they have to be asked for.
        """
        now = asyncio.get_running_loop().time()
        if added is not None:
            wanted = [each for each in added.addresses if ("AAAA" if ":" in each else "A") in self.record_types]
            self._set({"": Answer(tuple(wanted), added.ttl)}, added.ttl)
        elif now < self._expires:
            self.ttl = self._expires - now
        else:
            return False
        return bool(self.addresses)

    async def ask(self, client: DnsClient) -> None:
        """Ask for the addresses. If one type of record is not answered, its last known addresses stay.

        Raises:
            QueryFailed: No question was answered, or no address is known because one was not answered.
        """
        asked = [client.addresses(self.name, each) for each in self.record_types]
        results = await asyncio.gather(*asked, return_exceptions=True)
        answers: dict[str, Answer] = {}
        failure: QueryFailed | None = None
        for record_type, result in zip(self.record_types, results, strict=True):
            if isinstance(result, Answer):
                answers[record_type] = result
            elif isinstance(result, QueryFailed):
                failure = result
            else:
                raise result
        if failure is not None and not answers:
            raise failure
        ttl = min((each.ttl for each in answers.values() if each.addresses), default=None)
        if ttl is None:
            ttl = min((each.ttl for each in answers.values()), default=0.0)
        self._set({**self._answers, **answers} if failure else answers, ttl)
        if failure is not None:
            if not self.addresses:
                raise failure
            self.problem, self.is_incomplete, self._expires = str(failure), True, 0.0

    def _set(self, answers: dict[str, Answer], ttl: float) -> None:
        self._answers = answers
        self.addresses = _usable(address for each in answers.values() for address in each.addresses)
        self.ttl = ttl
        self._expires = asyncio.get_running_loop().time() + ttl
        self.is_incomplete = False
        if self.addresses:
            self.problem = ""
        elif any(each.addresses for each in answers.values()):
            self.problem = f"{self.name} has no address that other hosts can reach"
        else:
            exists = any(each.exists for each in answers.values())
            self.problem = f"{self.name} {'has no address' if exists else 'does not exist'}"


def _usable(addresses: Iterable[str]) -> tuple[str, ...]:
    """Return the addresses that a request can be sent to, IPv4 before IPv6, each once."""
    parsed = {ip_address(each) for each in addresses}
    usable = [
        each
        for each in parsed
        if not (each.is_unspecified or each.is_multicast or (isinstance(each, IPv6Address) and each.is_link_local))
    ]
    return tuple(str(each) for each in sorted(usable, key=lambda each: (each.version, int(each))))
