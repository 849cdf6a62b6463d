"""`Mirror`: a store, a router and a resolver behind two doors, with one lifecycle."""

from __future__ import annotations

import asyncio
import logging
import ssl
import uuid
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

from starlette import routing
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.types import ASGIApp

from peili.mirror.client.client import PeerClient
from peili.mirror.doors.local import LocalDoor
from peili.mirror.doors.middleware import (
    ROUTER_PATH,
    AccessCheck,
    Auth,
    PluginRouteMiddleware,
    RequestMetrics,
    anyone,
    loopback_only,
)
from peili.mirror.doors.ops import ops_app
from peili.mirror.doors.peer import PeerDoor
from peili.mirror.errors import ConfigError, Unavailable
from peili.mirror.lifecycle import Lifecycle, wait_until_listening
from peili.mirror.limits import Limits
from peili.mirror.metrics.counters import LOCAL, PEER, Family, Gauges, Metrics, empty_families
from peili.mirror.oci.references import is_registry
from peili.mirror.oci.selection import Selection
from peili.mirror.peer_api.peers import Peer, is_identity
from peili.mirror.plugins.interfaces import Context, Plugin, Resolver, Router, Store
from peili.mirror.relay.relay import Relay
from peili.mirror.resolvers import DeferResolver
from peili.mirror.support.log_lines import LineLogger
from peili.mirror.support.threads import call_on
from peili.mirror.tls.contexts import PeerTLS

if TYPE_CHECKING:
    from prometheus_client import Metric

_READY_INTERVAL = 0.02
_GAUGE_TIMEOUT = 1.0
"""Seconds for which another thread waits for the loop to read the gauges."""


class Mirror:
    """A host's part of the peer-to-peer mirror.

    It may be constructed without an event loop. Enter it (``async with mirror``) on one loop, in any task, any number
    of times. Two mirrors may run side by side. A plug-in that fails raises nothing into the host agent.

    Args:
        store: What this host has.
        router: Who has what.
        resolver: Which digest a tag means. The default is `DeferResolver`, which leaves that to upstream.
        identity: This host's id; or this host as a peer, with the URLs at which other hosts reach its peer door. The
            default is the id of `peer_tls`, else a random id.
        auth: Who may use the peer door. The default is `loopback_only`, or with `peer_tls` every peer with the right
            certificate.
        local_auth: Who may use the local door. The default is everyone who reaches it.
        insecure: Let everyone use the peer door, instead of `auth`.
        peer_tls: Mutual TLS between peers, in both directions: `serve` uses it for the peer door.
        client_ssl: For peers with https URLs, instead of `peer_tls`. None means the system's certificate authorities.
        registries: The registries that the mirror is for; see `Selection`.
        exclude: The images that it is not for; see `Selection`.
        default_registry: The registry of requests that name none.
        verify: Hash all content that is relayed. Manifests, and content up to ``limits.verify_ahead`` bytes, are
            always hashed.
        extensions: Other plug-ins that run with the mirror, for example `ContainerdHosts`. They are entered after its
            own plug-ins and exited first, already by `drain`. One that fails or is not ready affects nothing else.
        limits: The bounds of the mirror.
        log: The logger of all its parts; by default ``peili``. Each message is one line of at most 2,000 characters.

    Attributes:
        local: The local door, an ASGI app. Like the other two apps, it exists before the mirror is entered; until
            then, it has no content.
        peer: The peer door, an ASGI app.
        ops: An ASGI app with ``/livez``, ``/readyz``, ``/metrics`` and ``/status``.
        identity: This host as a peer. Its URLs are those that were given, else those that `serve` detected.
        limits: The bounds of the mirror.
        peer_tls: The argument.
        metrics: What the mirror counts; see `figures`.
        log: The logger of all its parts.

    Raises:
        ConfigError: An argument is wrong.
    """

    local: ASGIApp
    peer: ASGIApp
    ops: ASGIApp

    def __init__(
        self,
        store: Store,
        router: Router,
        resolver: Resolver | None = None,
        *,
        identity: str | Peer | None = None,
        auth: Auth | None = None,
        local_auth: Auth | None = None,
        insecure: bool = False,
        peer_tls: PeerTLS | None = None,
        client_ssl: ssl.SSLContext | None = None,
        registries: Iterable[str] = (),
        exclude: Iterable[str] = (),
        default_registry: str | None = None,
        verify: bool = True,
        extensions: Iterable[Plugin] = (),
        limits: Limits | None = None,
        log: logging.Logger | None = None,
    ) -> None:
        if default_registry is not None and not is_registry(default_registry):
            raise ConfigError("default_registry", f"a host name such as docker.io, not {default_registry!r}")
        _check_access(auth, insecure, peer_tls, client_ssl)
        self.peer_tls = peer_tls
        self.identity = _identity_peer(identity, peer_tls)
        resolver = resolver or DeferResolver()
        self._detected_urls: tuple[str, ...] = ()  # the URLs that `listens_at` set
        self.limits = limits or Limits()
        self.metrics = Metrics()
        self.log = LineLogger(log or logging.getLogger("peili"))
        client = PeerClient(self.limits, tls=peer_tls or client_ssl)
        self._context = Context(
            identity=self.identity.id,
            listening=lambda: wait_until_listening(lambda: self.identity, client, self.limits, self.log),
            store=store,
            router=router,
            client=client,
            selection=Selection(registries, exclude),
            limits=self.limits,
            log=self.log,
            limited=self.metrics.limited.add,
        )
        self._plugins: dict[str, Plugin] = {"store": store, "router": router, "resolver": resolver}
        self._extensions = tuple(extensions)
        self._relay = Relay(self._context, self.metrics, verify=verify)
        self._lifecycle: Lifecycle | None = None
        self._is_exiting = False
        local, peer = (replace(self._context, log=self.log.getChild(door)) for door in (LOCAL, PEER))
        self._local_door = LocalDoor(local, default_registry, resolver, self._relay)
        self._peer_door = PeerDoor(peer, default_registry)
        default_auth = anyone if insecure else loopback_only if peer_tls is None else peer_tls.admits
        self._build_apps(auth or default_auth, local_auth or anyone)

    def _build_apps(self, auth: Auth, local_auth: Auth) -> None:
        """Wrap the doors.

        A request at the local door passes `RequestMetrics`, `AccessCheck` and `LocalDoor`. A request at the peer door
        passes `RequestMetrics` and `AccessCheck`, then `PluginRouteMiddleware` and a route of the router if its path
        begins with `ROUTER_PATH`, else `PeerDoor`.
        """
        # Not a Starlette application: its middleware would answer for an exception of the router's route.
        router_routes = PluginRouteMiddleware(ExceptionMiddleware(routing.Router(self._routes())), self._context)
        mount = routing.Mount(ROUTER_PATH, router_routes)
        peer = routing.Router([mount], redirect_slashes=False, default=self._peer_door)
        local_checked = AccessCheck(self._local_door, local_auth, self._context)
        peer_checked = AccessCheck(peer, auth, self._context, identity=self.identity.id)
        self.local = RequestMetrics(local_checked, LOCAL, self.metrics)
        self.peer = RequestMetrics(peer_checked, PEER, self.metrics)
        self.ops = ops_app(self.readiness, self.ready, self.figures, self.status)

    def _routes(self) -> list[routing.BaseRoute]:
        router = self._context.router
        try:
            return list(router.routes())
        except Exception:  # a plug-in may raise anything; the host agent goes on
            self.log.exception("%s failed to return its routes", type(router).__name__)
            return []

    def readiness(self) -> Mapping[str, bool]:
        """Return, for each part, whether it can do its work now. Call it on the mirror's loop.

        The parts are ``store``, ``router`` and ``resolver``, and the extensions by the names of their classes. Cheap;
        never raises.
        """
        extensions = ((type(each).__name__, each) for each in self._extensions)
        named = [*self._plugins.items(), *extensions]
        return {name: all(self._is_ready(part) for each, part in named if each == name) for name, _ in named}

    def ready(self) -> bool:
        """Return whether every part that the doors need can do its work now. Call it on the mirror's loop."""
        return all(self._is_ready(part) for part in self._plugins.values())

    def _is_ready(self, part: Plugin) -> bool:
        return self._lifecycle is not None and self._lifecycle.is_ready(part)

    async def wait_ready(self, timeout: float) -> None:
        """Wait until the mirror is `ready`.

        Args:
            timeout: How many seconds to wait.

        Raises:
            Unavailable: It is not ready in time; the message names the parts that are not.
        """
        try:
            async with asyncio.timeout(timeout):
                while not self.ready():  # noqa: ASYNC110 - plug-ins have no event for it
                    await asyncio.sleep(_READY_INTERVAL)
        except TimeoutError as error:
            missing = ", ".join(name for name, part in self._plugins.items() if not self._is_ready(part))
            raise Unavailable(f"not ready after {timeout:g} s: {missing}") from error

    def reload(self) -> None:
        """Let the store, the router, the resolver and the extensions read their files again; see `Plugin.reload`.

        Call it on the mirror's loop, for example when the process receives SIGHUP. Never raises.
        """
        for part in (*self._plugins.values(), *self._extensions):
            try:
                part.reload()
            except Exception:  # a plug-in may raise anything
                self.log.exception("%s failed to reload", type(part).__name__)

    async def drain(self, timeout: float) -> None:
        """Prepare for the end of serving. Call it while peers can still connect.

        It exits the extensions and withdraws what was advertised. Then it waits for the responses in progress, and
        cuts off those that take longer than `timeout` seconds. The router's leases get as long to be released. The
        mirror still answers requests, but peers do not find it until `resume`. Idempotent.
        """
        lifecycle = self._lifecycle
        if lifecycle is not None:
            await lifecycle.withdraw()
        await asyncio.gather(self._local_door.drain(timeout), self._peer_door.drain(timeout))
        if lifecycle is not None:
            await self._relay.drain(timeout)

    async def resume(self) -> None:
        """Undo `drain`, or do nothing if there was none. `serve` calls it.

        It enters the extensions, enters the router again, and announces what the store has once our own peer door
        answers. It waits for these plug-ins as entering the mirror does.
        """
        if self._lifecycle is not None:
            await self._lifecycle.resume()

    def figures(self) -> list[Family]:
        """Return what `collect` returns, for host agents that do not use Prometheus.

        Counters grow for as long as this object lives. May be called from any thread; never raises.
        """
        lifecycle = self._lifecycle
        now = self._gauges() if lifecycle is None else call_on(lifecycle.loop, self._gauges, _GAUGE_TIMEOUT)
        blocked = Gauges(dict.fromkeys(self._plugins, False))
        return [*self.metrics.families(), *(now or blocked).families()]

    def status(self) -> Mapping[str, Any]:
        """Return the document of ``/status``. Call it on the mirror's loop.

        It says who this host is, which parts are ready, which peers it knows, and which clients used its local door.
        """
        lifecycle = self._lifecycle
        peers = lifecycle.peers() if lifecycle is not None else ()
        return {
            "identity": self.identity.id,
            "urls": list(self.identity.urls),
            "ready": dict(self.readiness()),
            "peers": [_describe(each) for each in peers],
            "runtime": self.metrics.clients.summary(),
        }

    def _gauges(self) -> Gauges:
        lifecycle = self._lifecycle
        return Gauges(
            ready=self.readiness(),
            peers=len(lifecycle.peers()) if lifecycle is not None else 0,
            advertised=lifecycle.advertised if lifecycle is not None else 0,
            transfers=self._relay.under_way,
            uploads=self._peer_door.upload_slots.in_use,
        )

    def collect(self) -> Iterable[Metric]:
        """Return the metrics for prometheus_client: ``registry.register(mirror)``.

        A mirror may be registered in several registries, entered or not. A registry with several mirrors takes one
        `Collector` of them all. May be called from any thread.

        Raises:
            ImportError: prometheus_client is not installed (the extra ``command``).
        """
        from peili.mirror.metrics import prometheus  # noqa: PLC0415 - needs prometheus_client, which is optional

        return prometheus.metrics(self.figures())

    def describe(self) -> Iterable[Metric]:
        """Return the names of all metrics. With them, a registry refuses names that it already has (ValueError)."""
        from peili.mirror.metrics import prometheus  # noqa: PLC0415 - as above

        return prometheus.metrics(empty_families())

    def listens_at(self, urls: Iterable[str]) -> None:
        """Set the URLs of this host's peer door, unless `identity` was given with URLs."""
        if self.identity.urls == self._detected_urls:
            self.identity = replace(self.identity, urls=tuple(urls))
            self._detected_urls = self.identity.urls

    @asynccontextmanager
    async def lifespan(self, app: object) -> AsyncGenerator[None]:
        """Run the mirror during the `lifespan` of a Starlette or FastAPI app.

        An app with a lifespan of its own enters the mirror there: these frameworks run no lifespan of mounted apps.
        """
        async with self:
            yield

    async def __aenter__(self) -> Self:
        """Enter the plug-ins. Waits for their first step for up to ``limits.start_timeout`` seconds.

        Does not wait for backends. A plug-in that fails is entered again in the background, and raises nothing here.

        Raises:
            RuntimeError: The mirror is entered already.
        """
        if self._lifecycle is not None or self._is_exiting:
            raise RuntimeError("this mirror is running already")
        self._lifecycle = Lifecycle(self._context, self._plugins.values(), self._extensions, self._relay)
        try:
            await self._lifecycle.start()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Withdraw what was advertised, wait for the leases that are being released, and exit the plug-ins.

        Each step takes at most ``limits.stop_timeout`` seconds. Afterwards nothing of the mirror runs: no task, thread
        or socket. There is one exception: a DNS lookup that hangs keeps its thread until the system gives up. Never
        raises.
        """
        lifecycle, self._lifecycle = self._lifecycle, None
        if lifecycle is not None:
            self._is_exiting = True
            try:
                await lifecycle.stop()
            finally:
                self._is_exiting = False


def _describe(peer: Peer) -> Mapping[str, Any]:
    described: dict[str, Any] = {"id": peer.id, "urls": list(peer.urls)}
    return described if peer.tls_name is None else {**described, "tls_name": peer.tls_name}


def _check_access(
    auth: Auth | None, insecure: bool, peer_tls: PeerTLS | None, client_ssl: ssl.SSLContext | None
) -> None:
    if insecure and auth is not None:
        raise ConfigError("insecure", "either `auth` or `insecure`, not both")
    if insecure and peer_tls is not None:
        raise ConfigError("insecure", "either `peer_tls` or `insecure`, not both")
    if client_ssl is not None and peer_tls is not None:
        raise ConfigError("client_ssl", "either `peer_tls` or `client_ssl`, not both")


def _identity_peer(identity: str | Peer | None, peer_tls: PeerTLS | None) -> Peer:
    certified = peer_tls.identity if peer_tls is not None else None
    own = identity if isinstance(identity, Peer) else Peer(identity or certified or uuid.uuid4().hex, ())
    if not is_identity(own.id):
        raise ConfigError("identity", f"up to 255 of the visible ASCII characters, not {own.id!a}")
    if certified is not None and own.id != certified:
        raise ConfigError("identity", f"{certified!a}, which the certificate shows, not {own.id!a}")
    return own


class Collector:
    """A collector for prometheus_client with the metrics of several mirrors.

    ``registry.register(Collector({"blue": one, "green": other}))``. Each sample has the name of its mirror in the label
    ``mirror``. A registry refuses a second mirror that is registered on its own, because the names are the same.

    Args:
        mirrors: The mirrors by name. The mapping is read at each collection, so mirrors may be added and removed.
    """

    def __init__(self, mirrors: Mapping[str, Mirror]) -> None:
        self._mirrors = mirrors

    def collect(self) -> Iterable[Metric]:
        """Return the metrics of all mirrors. May be called from any thread.

        Raises:
            ImportError: prometheus_client is not installed (the extra ``command``).
        """
        from peili.mirror.metrics import prometheus  # noqa: PLC0415 - needs prometheus_client, which is optional

        return prometheus.merged_metrics({name: mirror.figures() for name, mirror in dict(self._mirrors).items()})

    def describe(self) -> Iterable[Metric]:
        """Return the names of all metrics."""
        from peili.mirror.metrics import prometheus  # noqa: PLC0415 - as above

        return prometheus.merged_metrics({"": empty_families()})
