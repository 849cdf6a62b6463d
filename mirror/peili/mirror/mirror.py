"""The mirror: a store, a router and a resolver behind two doors, with one lifecycle."""

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
    RequestMetrics,
    RouterRoutes,
    anyone,
    loopback_only,
)
from peili.mirror.doors.ops import ops_app
from peili.mirror.doors.peer import PeerDoor
from peili.mirror.errors import ConfigError, Unavailable
from peili.mirror.lifecycle import Lifecycle, wait_until_listening
from peili.mirror.limits import Limits
from peili.mirror.metrics.counters import LOCAL, PEER, Family, Gauges, Metrics, nothing
from peili.mirror.oci.references import is_registry
from peili.mirror.oci.selection import Selection
from peili.mirror.peer_api.peers import Peer, is_identity
from peili.mirror.plugins.interfaces import Context, Plugin, Resolver, Router, Store
from peili.mirror.relay.relay import Relay
from peili.mirror.resolvers import DeferResolver
from peili.mirror.support.log_lines import LineLogger
from peili.mirror.support.threads import call_on

if TYPE_CHECKING:
    from prometheus_client import Metric

_READY_INTERVAL = 0.02
_GAUGE_PATIENCE = 1.0
"""Seconds for which another thread waits for the loop to say how things are."""


class Mirror:
    """A host's part of the peer-to-peer mirror.

    Attributes: `local`, `peer` and `ops` are ASGI apps, there before the mirror is entered; until then they answer that
    nothing is here. They raise nothing into the host's server, whatever a plug-in does. `identity` is this host as a
    peer; its URLs are what the host gave, or what `serve` found out.

    Args:
        store, router, resolver: this host's; the resolver is `DeferResolver` where none is given.
        identity: this host's id, or itself as a peer with the URLs at which others reach its peer door; by default a
            random id.
        auth: who may use the peer door; by default this host only. `insecure` lets everybody in.
        local_auth: who may use the local door; by default whoever reaches it.
        client_ssl: for peers with https URLs.
        registries, exclude: which ones it is for; see `Selection`.
        default_registry: for requests that name none.
        extensions: what else lives with the mirror, as `ContainerdHosts`. Entered when its other plug-ins were, left
            first, by `drain` already, until `resume`; one that fails or is not ready harms nothing else.
        verify: hash what is relayed. Manifests, and what fits into ``limits.verify_ahead``, always are.
        log: the logger of all parts; by default ``peili``. Each message is one line of at most 2,000 characters.

    Enter and leave it (``async with``) on one loop, in any task, any number of times; two may live side by side. It may
    be built without a loop. Raises ConfigError.
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
        if insecure and auth is not None:
            raise ConfigError("insecure", "either `auth` or `insecure`, not both")
        self.identity = identity if isinstance(identity, Peer) else Peer(identity or uuid.uuid4().hex, ())
        if not is_identity(self.identity.id):
            raise ConfigError("identity", f"up to 255 of the visible ASCII characters, not {self.identity.id!a}")
        resolver = resolver or DeferResolver()
        self._found: tuple[str, ...] = ()  # what `listens_at` made the identity's URLs
        self.limits = limits or Limits()
        self.metrics = Metrics()
        self.log = LineLogger(log or logging.getLogger("peili"))
        client = PeerClient(self.limits, tls=client_ssl)
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
        self._local_door = LocalDoor(local, self.metrics, default_registry, resolver, self._relay)
        self._peer_door = PeerDoor(peer, self.metrics, default_registry)
        self._build_apps(auth or (anyone if insecure else loopback_only), local_auth or anyone)

    def _build_apps(self, auth: Auth, local_auth: Auth) -> None:
        context, limits, limited = self._context, self.limits, self.metrics.limited.add
        # Not a Starlette application: its middleware would answer for an exception of the router's route.
        routes = RouterRoutes(ExceptionMiddleware(routing.Router(self._routes())), context)
        between_routers = routing.Mount(ROUTER_PATH, routes)
        peer = routing.Router([between_routers], redirect_slashes=False, default=self._peer_door)
        local_guarded = AccessCheck(self._local_door, local_auth, limits, limited, self.log)
        peer_guarded = AccessCheck(peer, auth, limits, limited, self.log, identity=self.identity.id)
        self.local = RequestMetrics(local_guarded, LOCAL, self.metrics)
        self.peer = RequestMetrics(peer_guarded, PEER, self.metrics)
        self.ops = ops_app(self.readiness, self.ready, self.figures, self.status)

    def _routes(self) -> list[routing.BaseRoute]:
        router = self._context.router
        try:
            return list(router.routes())
        except Exception:  # a plug-in may raise anything; the host agent goes on
            self.log.exception("%s failed to return its routes", type(router).__name__)
            return []

    def readiness(self) -> Mapping[str, bool]:
        """Of each part (``store``, ``router``, ``resolver``), whether it can do its work now; an extension has its
        class's name. Cheap, does not raise. On the mirror's loop only.
        """
        extensions = ((type(each).__name__, each) for each in self._extensions)
        named = [*self._plugins.items(), *extensions]
        return {name: all(self._is_ready(part) for each, part in named if each == name) for name, _ in named}

    def ready(self) -> bool:
        """Whether every part that the doors need can do its work now. On the mirror's loop only."""
        return all(self._is_ready(part) for part in self._plugins.values())

    def _is_ready(self, part: Plugin) -> bool:
        return self._lifecycle is not None and self._lifecycle.is_ready(part)

    async def wait_ready(self, timeout: float) -> None:
        """Wait until the mirror is `ready`. Raises Unavailable, naming those that are not, after `timeout` seconds."""
        try:
            async with asyncio.timeout(timeout):
                while not self.ready():  # noqa: ASYNC110 - plug-ins have no event for it
                    await asyncio.sleep(_READY_INTERVAL)
        except TimeoutError as error:
            missing = ", ".join(name for name, part in self._plugins.items() if not self._is_ready(part))
            raise Unavailable(f"not ready after {timeout:g} s: {missing}") from error

    async def drain(self, timeout: float) -> None:
        """Leave the extensions, withdraw what was advertised, give answers under way `timeout` seconds to end, cut off
        those that last longer, and give the router's leases as long to be released. Call it while peers can still
        connect; the mirror goes on answering, unknown to peers until `resume`. Idempotent.
        """
        lifecycle = self._lifecycle
        if lifecycle is not None:
            await lifecycle.withdraw()
        await asyncio.gather(self._local_door.drain(timeout), self._peer_door.drain(timeout))
        if lifecycle is not None:
            await self._relay.drain(timeout)

    async def resume(self) -> None:
        """Undo `drain`: enter the extensions, and the router anew, and announce what the store has once our own peer
        door answers. Waits for these plug-ins as entering does. `serve` calls it. Does nothing where nothing drained.
        """
        if self._lifecycle is not None:
            await self._lifecycle.resume()

    def figures(self) -> list[Family]:
        """What `collect` tells, for hosts whose metrics are not Prometheus's. May be called from any thread; does not
        raise. Counters grow for as long as this object lives, gauges are of now.
        """
        lifecycle = self._lifecycle
        now = self._gauges() if lifecycle is None else call_on(lifecycle.loop, self._gauges, _GAUGE_PATIENCE)
        stuck = Gauges(dict.fromkeys(self._plugins, False))
        return [*self.metrics.families(), *(now or stuck).families()]

    def status(self) -> Mapping[str, Any]:
        """Who this is, how it is, which peers it knows, and who has asked at its local door, as ``/status`` tells it to
        programs that look after the host. On the mirror's loop.
        """
        lifecycle = self._lifecycle
        peers = lifecycle.peers() if lifecycle is not None else ()
        return {
            "identity": self.identity.id,
            "urls": list(self.identity.urls),
            "ready": dict(self.readiness()),
            "peers": [{"id": each.id, "urls": list(each.urls)} for each in peers],
            "runtime": self.metrics.runtime(),
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
        """Makes this a collector of prometheus_client's: ``registry.register(mirror)``, entered or not, once in each of
        any number of registries. A registry that has several mirrors takes one `Collector` of them all.

        May be called from any thread. Raises ImportError where prometheus_client (the extra ``command``) is not there.
        """
        from peili.mirror.metrics import prometheus  # noqa: PLC0415 - needs prometheus_client, which is the host's

        return prometheus.metrics(self.figures())

    def describe(self) -> Iterable[Metric]:
        """From it a registry has the names, and refuses those that it has already (ValueError)."""
        from peili.mirror.metrics import prometheus  # noqa: PLC0415 - as above

        return prometheus.metrics(nothing())

    def listens_at(self, urls: Iterable[str]) -> None:
        """From now on, this host's peer door is served at `urls`, unless the host said itself which they are."""
        if self.identity.urls == self._found:
            self.identity = replace(self.identity, urls=tuple(urls))
            self._found = self.identity.urls

    @asynccontextmanager
    async def lifespan(self, app: object) -> AsyncGenerator[None]:
        """The mirror's life as a Starlette or FastAPI app's `lifespan`.

        A host that has one of its own enters the mirror there: these frameworks run none of what is mounted.
        """
        async with self:
            yield

    async def __aenter__(self) -> Self:
        """Enter the plug-ins; waits for their first step, ``limits.start_timeout`` seconds at most, and for no backend.

        A plug-in that fails is tried again in the background, and raises nothing here. Raises RuntimeError where the
        mirror is entered already.
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
        """Withdraw what was advertised, wait for leases that are being released, and leave the plug-ins; each has
        ``limits.stop_timeout`` seconds.

        Whatever the mirror started has ended then: its tasks, threads and sockets; only the look-up of a peer's name
        that hangs keeps its thread until the system gives up. Does not raise.
        """
        lifecycle, self._lifecycle = self._lifecycle, None
        if lifecycle is not None:
            self._is_exiting = True
            try:
                await lifecycle.stop()
            finally:
                self._is_exiting = False
