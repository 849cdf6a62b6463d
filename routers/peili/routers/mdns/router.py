"""A router that finds its members on the local network by multicast DNS service discovery (RFC 6762, RFC 6763)."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Collection, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, Self

from typing_extensions import override
from zeroconf import Error as ZeroconfError
from zeroconf import Zeroconf
from zeroconf.asyncio import AsyncServiceBrowser, AsyncZeroconf

from peili.mirror import Backoff, Context, MembershipRouter, Options, Peer, Tasks
from peili.routers.mdns.announcement import find_announcement, without_loopback
from peili.routers.mdns.discovery import DiscoveredServices, ServiceResolver
from peili.routers.mdns.interfaces import NetworkAttachment, find_attachment
from peili.routers.mdns.service import SERVICE_TYPE, fits_label, parse_address, to_service

_CHECK_INTERVAL = 5.0  # seconds between checks of this host's interfaces
_NETWORK_ERRORS = (OSError, RuntimeError, ZeroconfError)  # what zeroconf raises for a network that does not work

_VERSIONS: Mapping[str, tuple[int, ...]] = {"all": (4, 6), "v4": (4,), "v6": (6,)}
_INTERFACE = re.compile(r"[^\s/]{1,15}")  # the interface names that Linux accepts
_LABEL = re.compile(r"[A-Za-z0-9._/-]+")


class MdnsRouter(MembershipRouter):
    """A router whose members are the hosts that announce ``_peili._tcp.local.`` on the local network.

    It announces this host as soon as its peer door answers; loopback only on loopback. A host that stops says so, and
    is forgotten at once. One that crashes is forgotten after about a minute. The router is ready as soon as it listens.
    If there is no network yet, or if it changes, the router keeps trying.

    Args:
        interfaces: Names or addresses of the interfaces to use. Empty: all interfaces.
        versions: The IP versions to use.
        labels: Labels to announce in addition to those of this host as a peer.
    """

    def __init__(
        self,
        *,
        interfaces: Iterable[str] = (),
        versions: Iterable[int] = (4, 6),
        labels: Mapping[str, str] | None = None,
    ) -> None:
        self._interfaces = frozenset(interfaces)
        self._versions = frozenset(versions)
        self._labels = dict(labels or {})
        self._services = DiscoveredServices()

    @override
    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Create a router from its options.

        They are ``interfaces``, a list of names or addresses; ``ip_version``, which is ``"v4"``, ``"v6"`` or
        ``"all"``; and ``labels``, a table.
        """
        options = Options(config, "interfaces", "ip_version", "labels")
        names = options.sequence("interfaces", 'a list of names or addresses of interfaces, as in ["eth0"]', ())
        return cls(
            interfaces=[_read_interface(options, f"interfaces[{index}]", each) for index, each in enumerate(names)],
            versions=_VERSIONS[options.choice("ip_version", _VERSIONS, "all")],
            labels=_read_labels(options),
        )

    @override
    @asynccontextmanager
    async def run(self, context: Context) -> AsyncGenerator[None, None]:
        async with super().run(context):
            try:
                async with Tasks(context.log) as tasks:
                    tasks.start(self._keep_participating(context))
                    yield
            finally:
                self._services = DiscoveredServices()  # the next run has to find the hosts again

    @override
    def members(self) -> AsyncGenerator[Collection[Peer], None]:
        return self._services.members()

    async def _keep_participating(self, context: Context) -> None:
        """Take part in multicast DNS, and start again after an error and after a change of this host's addresses."""
        backoff, is_logged = Backoff(context.limits.backoff_min, context.limits.backoff_max), False
        while True:
            try:
                await self._participate(context, find_attachment(self._interfaces, self._versions))
            except _NETWORK_ERRORS as error:
                if not is_logged:
                    context.log.warning("no peers are found by multicast DNS for now: %s", error)
                is_logged = True
                await backoff.sleep()
            else:
                backoff.reset()
                is_logged = False

    async def _participate(self, context: Context, attachment: NetworkAttachment) -> None:
        """Announce this host and browse for others until its interfaces or addresses change."""
        if not attachment.interfaces:
            raise OSError("no network interface that could be used")
        async with _open_zeroconf(attachment) as zeroconf, Tasks(context.log) as tasks:
            resolver = ServiceResolver(
                context, zeroconf, self._services, tasks, versions=self._versions, attachment=attachment
            )
            async with AsyncServiceBrowser(zeroconf, SERVICE_TYPE, handlers=[resolver.handle_change]):
                tasks.start(resolver.refresh_expired())
                tasks.start(self._announce(context, zeroconf, attachment))
                self._services.set_browsing()
                while find_attachment(self._interfaces, self._versions) == attachment:  # noqa: ASYNC110 - no event
                    await asyncio.sleep(_CHECK_INTERVAL)
        context.log.info("this host's network addresses have changed; announcing it again")

    async def _announce(self, context: Context, zeroconf: Zeroconf, attachment: NetworkAttachment) -> None:
        this_host = await context.listening()
        announcement = await find_announcement(context, this_host, attachment.addresses)
        if announcement is None:
            urls, addresses = ", ".join(this_host.urls), ", ".join(without_loopback(attachment.addresses))
            context.log.warning(
                "this host is not announced by multicast DNS: its peer door answers at %s, but at none of %s; set "
                "peer.listen, or peer.advertise to a URL that other hosts can reach",
                urls,
                addresses,
            )
            return
        backoff = Backoff(context.limits.backoff_min, context.limits.backoff_max)
        while True:
            try:
                info = to_service(announcement.peer, self._labels, announcement.addresses)
                await (await zeroconf.async_register_service(info, allow_name_change=True))  # pyright: ignore[reportUnknownMemberType] - zeroconf does not state the type of its Awaitable
            except ValueError as error:
                context.log.error("this host is not announced by multicast DNS: %s", error)  # noqa: TRY400 - one line
                return
            except _NETWORK_ERRORS as error:
                context.log.debug("announcing this host failed, trying again: %r", error)
            else:
                return
            await backoff.sleep()


@asynccontextmanager
async def _open_zeroconf(attachment: NetworkAttachment) -> AsyncGenerator[Zeroconf, None]:
    """Join multicast DNS. On exit, send the goodbye, which takes about a quarter of a second."""
    zeroconf = AsyncZeroconf(interfaces=list(attachment.interfaces))
    try:
        await zeroconf.zeroconf.async_wait_for_start()
        yield zeroconf.zeroconf
    finally:
        with suppress(*_NETWORK_ERRORS):
            await zeroconf.async_close()


def _read_interface(options: Options, place: str, value: Any) -> str:
    if isinstance(value, str):
        address = parse_address(value)
        if address is not None:
            return str(address)
        if _INTERFACE.fullmatch(value):
            return value
    raise options.wrong(place, "the name or the address of an interface, such as eth0 or 10.0.0.2", value)


def _read_labels(options: Options) -> dict[str, str]:
    labels = options.mapping("labels", {})
    for name, text in labels.items():
        if not _LABEL.fullmatch(name):
            raise options.wrong("labels", "names of letters, digits and . _ / -", name)
        if not fits_label(name, text):
            raise options.wrong(f"labels.{name}", "a text of at most about 200 characters", text)
    return labels
