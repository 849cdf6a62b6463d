"""Asks DNS servers with dnspython. The other modules of this router do not import it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import cast

from peili.mirror import PeiliError, Tasks

try:
    import dns.asyncbackend
    import dns.asyncresolver
    import dns.exception
    import dns.inet
    import dns.message
    import dns.name
    import dns.nameserver
    import dns.resolver
    import dns.rrset
    import dns.ttl
    from dns.rdata import Rdata
    from dns.rdtypes.IN.SRV import SRV
except ImportError as error:
    raise ImportError("the router dns needs dnspython: pip install 'peili[dns]'") from error

_UDP_PAYLOAD = 1232  # bytes of an answer by UDP that are never fragmented (DNS flag day 2020)
_LARGEST_ADDRESSES = 128  # bytes that the addresses of one more target need, with room to spare


class QueryFailed(PeiliError):
    """No server has answered the question. The message is one line that says why."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to a question for addresses.

    Attributes:
        addresses: IP addresses, sorted. Empty if there are none.
        ttl: Seconds for which the answer is valid.
        exists: Whether the name exists.
    """

    addresses: tuple[str, ...]
    ttl: float
    exists: bool = True


@dataclass(frozen=True, slots=True)
class ServiceAnswer:
    """The answer to a question for SRV records.

    Attributes:
        targets: Host names and ports, the preferred ones first. Empty if there are none.
        ttl: Seconds for which the answer is valid.
        exists: Whether the name exists.
        addresses: Addresses that the server has added, by host name.
    """

    targets: tuple[tuple[str, int], ...]
    ttl: float
    exists: bool = True
    addresses: Mapping[str, Answer] = field(default_factory=dict[str, Answer])


class DnsClient:
    """Asks the servers of ``/etc/resolv.conf``, or others. It has no cache.

    Args:
        servers: Addresses and ports of the servers. Empty: those of ``/etc/resolv.conf``, with its search list for
            names that do not end with a dot.
        timeout: Seconds until a question fails, with all repetitions and servers.

    Raises:
        QueryFailed: ``/etc/resolv.conf`` names no server.
    """

    def __init__(self, servers: Sequence[tuple[str, int]], timeout: float) -> None:
        try:
            self._resolver = dns.asyncresolver.Resolver(configure=not servers)
        except dns.resolver.NoResolverConfiguration as error:
            raise QueryFailed("/etc/resolv.conf names no server") from error
        if servers:
            self._resolver.nameservers = [dns.nameserver.Do53Nameserver(*server) for server in servers]
        self._resolver.lifetime = timeout
        self._resolver.use_edns(0, 0, _UDP_PAYLOAD)
        self._search = not servers
        self._backend = dns.asyncbackend.get_backend("asyncio")

    async def addresses(self, name: str, record_type: str) -> Answer:
        """Ask for the records ``A`` or ``AAAA`` of `name`. Raises QueryFailed."""
        reply = await self._ask(name, record_type)
        return Answer(tuple(sorted(each.to_text() for each in reply.records)), reply.ttl, reply.exists)

    async def service(self, name: str) -> ServiceAnswer:
        """Ask for the SRV records of `name`, over TCP if the answer does not fit into one UDP packet.

        A target of "." means that the service is not available (RFC 2782), so it is no target.

        Raises:
            QueryFailed: No server has answered.
        """
        reply = await self._ask(name, "SRV")
        is_whole = not _is_trimmed(reply.message)
        if not is_whole:
            with suppress(QueryFailed):  # without TCP, each target's addresses need a question of their own
                reply = await self._ask(name, "SRV", tcp=True)
                is_whole = True
        records = sorted(
            (each.priority, -each.weight, _text(each.target), each.port)
            for each in reply.records
            if isinstance(each, SRV)
        )
        targets = dict.fromkeys((target, port) for _, _, target, port in records if target and port)
        added = _added_addresses(reply.message) if is_whole else {}
        return ServiceAnswer(tuple(targets), reply.ttl, reply.exists, added)

    async def _ask(self, name: str, record_type: str, *, tcp: bool = False) -> _Reply:
        """Ask one question. A name with a dot at its end is complete."""
        search = self._search and not name.endswith(".")
        try:
            # In a task of its own, because on Python 3.11 the `asyncio.wait_for` that dnspython uses swallows a
            # cancellation if the answer arrives at the same moment.
            async with Tasks() as tasks:
                asking = tasks.start(
                    self._resolver.resolve(
                        name, record_type, tcp=tcp, raise_on_no_answer=False, search=search, backend=self._backend
                    )
                )
                await asyncio.wait([asking])
            answer = asking.result()
        except dns.resolver.NXDOMAIN as error:
            responses = cast("Mapping[dns.name.Name, dns.message.QueryMessage]", vars(error)["kwargs"]["responses"])
            return _Reply(next(iter(responses.values())), exists=False)
        except (dns.exception.DNSException, OSError, EOFError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise QueryFailed(f"no answer for {name} {record_type}: {reason}") from error
        return _Reply(answer.response, _records(answer.rrset))


@dataclass(frozen=True, slots=True)
class _Reply:
    """What a server has answered."""

    message: dns.message.QueryMessage
    records: Iterable[Rdata] = ()
    exists: bool = True

    @property
    def ttl(self) -> float:
        """Seconds for which it is valid: 0 for a negative answer that does not say it (RFC 2308)."""
        ttl = self.message.resolve_chaining().minimum_ttl
        return float(ttl) if ttl < dns.ttl.MAX_TTL else 0.0


def is_name(text: str) -> bool:
    """Return whether `text` is a domain name, and not an IP address."""
    if dns.inet.is_address(text):
        return False
    try:
        name = dns.name.from_text(text)
    except (dns.exception.DNSException, UnicodeError):
        return False
    return name != dns.name.root and text.isprintable() and " " not in text


def _records(records: dns.rrset.RRset | None) -> Iterable[Rdata]:
    return () if records is None else cast("Iterable[Rdata]", records)


def _is_trimmed(response: dns.message.Message) -> bool:
    """Return whether the server may have left out addresses of targets to keep the answer by UDP short.

    That does not set the flag for truncated answers (RFC 2181, section 9).
    """
    length = len(response.wire or b"")
    return _UDP_PAYLOAD - _LARGEST_ADDRESSES < length <= _UDP_PAYLOAD


def _added_addresses(response: dns.message.Message) -> dict[str, Answer]:
    added: dict[str, Answer] = {}
    for records in response.additional:
        if records.rdtype.name not in {"A", "AAAA"}:
            continue
        name, addresses = _text(records.name), [each.to_text() for each in _records(records)]
        before = added.get(name, Answer((), records.ttl))
        added[name] = Answer(tuple(sorted({*before.addresses, *addresses})), min(before.ttl, records.ttl))
    return added


def _text(name: dns.name.Name) -> str:
    """Return a name in lower case without the dot at its end. The root is an empty text."""
    return name.to_text(omit_final_dot=True).lower() if name != dns.name.root else ""
