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
from peili.mirror.lifecycle import Running
from peili.mirror.limits import Limits
from peili.mirror.metrics.counters import LOCAL, PEER, Family, Gauges, Metrics, nothing
from peili.mirror.oci.references import is_registry
from peili.mirror.oci.selection import Selection
from peili.mirror.parts import Parts
from peili.mirror.peer_api.peers import Peer, is_identity
from peili.mirror.plugins.interfaces import Plugin, Resolver, Router, Store
from peili.mirror.relay.relay import Relay
from peili.mirror.resolvers.resolvers import DeferResolver
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
        self._found: tuple[str, ...] = ()  # what `listens_at` made the identity's URLs
        self.limits = limits or Limits()
        self.metrics = Metrics()
        self.log = LineLogger(log or logging.getLogger("peili"))
        self._parts = Parts(
            store=store,
            router=router,
            resolver=resolver or DeferResolver(),
            selection=Selection(registries, exclude),
            relay=Relay(self.metrics),
            limits=self.limits,
            metrics=self.metrics,
            log=self.log,
            verify=verify,
            client_ssl=client_ssl,
            default_registry=default_registry,
            extensions=tuple(extensions),
        )
        self._running: Running | None = None
        self._build_apps(auth or (anyone if insecure else loopback_only), local_auth or anyone)

    def _build_apps(self, auth: Auth, local_auth: Auth) -> None:
        parts, limits, limited = self._parts, self.limits, self.metrics.limited.add
        self._local_door = LocalDoor(parts, parts.log.getChild("local"))
        self._peer_door = PeerDoor(parts, parts.log.getChild("peer"))
        # Not Starlette's application, whose middleware would answer for what a stranger's route raises.
        routes = RouterRoutes(ExceptionMiddleware(routing.Router(self._routes())), parts)
        between_routers = routing.Mount(ROUTER_PATH, routes)
        peer = routing.Router([between_routers], redirect_slashes=False, default=self._peer_door)
        self.local = RequestMetrics(
            AccessCheck(self._local_door, local_auth, limits, limited, parts.log), LOCAL, parts.metrics
        )
        guarded = AccessCheck(peer, auth, limits, limited, parts.log, identity=self.identity.id)
        self.peer = RequestMetrics(guarded, PEER, parts.metrics)
        self.ops = ops_app(self.readiness, self.ready, self.figures, self.status)

    def _routes(self) -> list[routing.BaseRoute]:
        try:
            return list(self._parts.router.routes())
        except Exception:  # a stranger's, and the host lives on
            self._parts.log.exception("%s failed to say its routes", type(self._parts.router).__name__)
            return []

    def readiness(self) -> Mapping[str, bool]:
        """Of each part (``store``, ``router``, ``resolver``), whether it can do its work now; an extension has its
        class's name. Cheap, does not raise. On the mirror's loop only.
        """
        extensions = ((type(each).__name__, each) for each in self._parts.extensions)
        named = [*self._parts.plugins.items(), *extensions]
        return {name: all(self._is_ready(part) for each, part in named if each == name) for name, _ in named}

    def ready(self) -> bool:
        """Whether every part that the doors need can do its work now. On the mirror's loop only."""
        return all(self._is_ready(part) for part in self._parts.plugins.values())

    def _is_ready(self, part: Plugin) -> bool:
        return self._running is not None and self._running.ready(part)

    async def wait_ready(self, timeout: float) -> None:
        """Wait until the mirror is `ready`. Raises Unavailable, naming those that are not, after `timeout` seconds."""
        try:
            async with asyncio.timeout(timeout):
                while not self.ready():  # noqa: ASYNC110 - plug-ins have no event for it
                    await asyncio.sleep(_READY_INTERVAL)
        except TimeoutError as error:
            missing = ", ".join(name for name, part in self._parts.plugins.items() if not self._is_ready(part))
            raise Unavailable(f"not ready after {timeout:g} s: {missing}") from error

    async def drain(self, timeout: float) -> None:
        """Leave the extensions, withdraw what was advertised, give answers under way `timeout` seconds to end, cut off
        those that last longer, and give the router's leases as long to be released. Call it while peers can still
        connect; the mirror goes on answering, unknown to peers until `resume`. Idempotent.
        """
        running = self._running
        if running is not None:
            await running.withdraw()
        await asyncio.gather(self._local_door.drain(timeout), self._peer_door.drain(timeout))
        if running is not None:
            await running.drain(timeout)

    async def resume(self) -> None:
        """Undo `drain`: enter the extensions, and the router anew, and announce what the store has once our own peer
        door answers. Waits for these plug-ins as entering does. `serve` calls it. Does nothing where nothing drained.
        """
        if self._running is not None:
            await self._running.resume()

    def figures(self) -> list[Family]:
        """What `collect` tells, for hosts whose metrics are not Prometheus's. May be called from any thread; does not
        raise. Counters grow for as long as this object lives, gauges are of now.
        """
        running = self._running
        now = self._gauges() if running is None else call_on(running.loop, self._gauges, _GAUGE_PATIENCE)
        stuck = Gauges(dict.fromkeys(self._parts.plugins, False))
        return [*self.metrics.families(), *(now or stuck).families()]

    def status(self) -> Mapping[str, Any]:
        """Who this is, how it is, which peers it knows, and who has asked at its local door, as ``/status`` tells it to
        programs that look after the host. On the mirror's loop.
        """
        running = self._running
        peers = running.peers() if running is not None else ()
        return {
            "identity": self.identity.id,
            "urls": list(self.identity.urls),
            "ready": dict(self.readiness()),
            "peers": [{"id": each.id, "urls": list(each.urls)} for each in peers],
            "runtime": self.metrics.runtime(),
        }

    def _gauges(self) -> Gauges:
        running = self._running
        return Gauges(
            ready=self.readiness(),
            peers=len(running.peers()) if running is not None else 0,
            advertised=running.advertised if running is not None else 0,
            transfers=self._parts.relay.under_way,
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
        if self._running is not None:
            raise RuntimeError("this mirror is running already")
        self._running = Running(self._parts, lambda: self.identity)
        try:
            await self._running.start()
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
        running, self._running = self._running, None
        if running is not None:
            await running.stop()
