"""`Mirror`: a store, a router and a resolver behind two doors, with one lifecycle."""

from __future__ import annotations

import asyncio
import logging
import ssl
import uuid
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from socket import gethostname
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, cast

from starlette.types import ASGIApp

from peili.mirror.accounting.accounting import Accounting
from peili.mirror.client.client import PeerClient
from peili.mirror.client.own_door import wait_until_listening
from peili.mirror.content.incoming import IncomingTable
from peili.mirror.content.intact_store import IntactStore
from peili.mirror.content.selected_store import SelectedStore
from peili.mirror.doors.access import Auth, anyone, loopback_only
from peili.mirror.doors.layers import Layers
from peili.mirror.doors.local import LocalDoor
from peili.mirror.doors.ops import OpsSources, StatusStreams, ops_app
from peili.mirror.doors.peer import PeerDoor
from peili.mirror.errors import ConfigError, Unavailable
from peili.mirror.inspection.inspector import Inspector
from peili.mirror.lifecycle import Lifecycle
from peili.mirror.limits import Limits
from peili.mirror.metrics.counters import LOCAL, PEER, Gauges, Metrics, empty_families
from peili.mirror.metrics.families import Family
from peili.mirror.metrics.spans import Spans
from peili.mirror.oci.references import is_registry
from peili.mirror.oci.selection import Selection
from peili.mirror.peer_api.peers import Peer, is_identity
from peili.mirror.plugins.interfaces import Context, Plugin, Router, Store
from peili.mirror.plugins.resolver import Resolver
from peili.mirror.relay.relay import Relay
from peili.mirror.resolvers import DeferResolver
from peili.mirror.rights.gate import Gate
from peili.mirror.rights.policy import PullRights
from peili.mirror.status import StatusParts
from peili.mirror.support.log_lines import LineLogger
from peili.mirror.support.tasks import Tasks, finish, is_own_failure
from peili.mirror.support.threads import call_on
from peili.mirror.tls.peer_tls import PeerTLS
from peili.mirror.upstream.api_roots import RootFinder, default_roots, trusting
from peili.mirror.upstream.client import UpstreamClient

if TYPE_CHECKING:
    from prometheus_client import Metric

_READY_INTERVAL = 0.02
_GAUGE_TIMEOUT = 1.0
"""Seconds for which another thread waits for the loop to read the gauges."""


class Mirror:
    """A host's part of the peer-to-peer mirror.

    It may be constructed without an event loop. Enter it (``async with mirror``) on one loop, in any task. It may be
    entered again after it was exited. Several mirrors may run at the same time. An error of a plug-in is logged and
    never raised into the host agent.

    Args:
        store: What this host has.
        router: Who has what.
        resolver: Which digest a tag means. By default `DeferResolver`: upstream decides.
        identity: This host's id; or this host as a peer, with the URLs at which other hosts reach its peer door. By
            default the id of `peer_tls`, else a random id.
        auth: Decides which requests may use the peer door. By default `loopback_only`; with `peer_tls`, every peer with
            the right certificate may.
        local_auth: Decides which requests may use the local door. By default `loopback_only`. For a runtime on other
            addresses, see `clients_in`.
        local_hosts: Names of the local door, without a port, that requests may have as their Host. A loopback address,
            ``localhost`` and the address at which a request arrived are always allowed; ``*`` allows every name. Others
            are refused, because a web page may have sent them (DNS rebinding).
        insecure: Open the peer door to all requests. Replaces `auth`.
        peer_tls: Mutual TLS between peers, for requests to peers and for the peer door that `serve` serves.
        client_ssl: The TLS context for requests to peers with https URLs. Not together with `peer_tls`. None means the
            system's certificate authorities.
        registries: The registries that the mirror is for; see `Selection`.
        exclude: The images that it is not for; see `Selection`.
        default_registry: The registry of requests that name none.
        verify: Hash all content that is relayed. Manifests, and content up to ``limits.verify_ahead`` bytes, are
            always hashed.
        rights: Whose images are given only to those who may pull them from the registry. None means: no images.
        extensions: Other plug-ins that run with the mirror, for example `ContainerdHosts`. They are entered after the
            store, the router and the resolver, and exited before them, already by `drain`. If one fails or is not
            ready, the rest works as usual.
        upstream_roots: Finds the API of a registry, for the few questions that are asked upstream. It runs in a thread,
            and what it returns is used for half a minute. By default `default_roots`. What it returns for a registry
            that `registries` or `rights` names without a wildcard counts as configured; see `ApiRoot`.
        limits: The bounds of the mirror.
        log: The logger of all its parts. By default ``peili``. Each message is one line of at most 2,000 characters.

    Attributes:
        local: The local door, an ASGI app. Like the other two apps, it may be mounted before the mirror is entered, but
            has no content until then.
        peer: The peer door, an ASGI app.
        ops: An ASGI app with ``/livez``, ``/readyz``, ``/metrics`` and ``/status``.
        local_ops: The same for the address of the local door: it is for this host and for `local_auth`, and refuses the
            same Host headers.
        own_ops: The same for an address of its own, as `serve` serves it: it refuses the same Host headers.
        identity: This host as a peer. Its URLs are those that were given, else those that `serve` detected.
        limits: The bounds of the mirror.
        peer_tls: The mutual TLS between peers, if there is any.
        metrics: What the mirror counts; see `figures`.
        accounting: What the runtime received, and from where.
        log: The logger of all its parts.

    Raises:
        ConfigError: An argument is wrong.
    """

    local: ASGIApp
    peer: ASGIApp
    ops: ASGIApp
    local_ops: ASGIApp
    own_ops: ASGIApp
    _lifecycle: Lifecycle | None = None  # while the mirror is entered
    _is_exiting = False

    def __init__(
        self,
        store: Store,
        router: Router,
        resolver: Resolver | None = None,
        *,
        identity: str | Peer | None = None,
        auth: Auth | None = None,
        local_auth: Auth | None = None,
        local_hosts: Iterable[str] = (),
        insecure: bool = False,
        peer_tls: PeerTLS | None = None,
        client_ssl: ssl.SSLContext | None = None,
        registries: Iterable[str] = (),
        exclude: Iterable[str] = (),
        default_registry: str | None = None,
        verify: bool = True,
        rights: PullRights | None = None,
        extensions: Iterable[Plugin] = (),
        upstream_roots: RootFinder = default_roots,
        limits: Limits | None = None,
        log: logging.Logger | None = None,
    ) -> None:
        _check_arguments(auth, insecure, peer_tls, client_ssl, default_registry)
        self.peer_tls, self.identity = peer_tls, _identity_peer(identity, peer_tls)
        resolver = resolver or DeferResolver()
        self._detected_urls: tuple[str, ...] = ()  # the URLs that `listens_at` set
        self.limits, self.metrics, self._spans = limits or Limits(), Metrics(), Spans()
        self.log = LineLogger(log or logging.getLogger("peili"))
        self.accounting = Accounting(self.metrics, self.log.getChild("pulls"))
        client = PeerClient(self.limits, tls=peer_tls or client_ssl, add_headers=self._spans.inject)
        self._incoming = IncomingTable(self.identity.id, self.limits, self.metrics.limited.add)
        selection = Selection(registries, exclude)
        upstream = UpstreamClient(
            self.limits,
            roots=trusting(upstream_roots, partial(_is_named, selection, rights)),
            log=self.log.getChild("upstream"),
            count=self.metrics.upstream_requests.add,
        )
        intact = IntactStore(store)
        self._context = self._new_context(intact, router, client, upstream, selection)
        self._gate = self._new_gate(rights)
        self._resolver, self._extensions = resolver, tuple(extensions)
        self._plugins: dict[str, Plugin] = {"store": store, "router": router, "resolver": resolver}
        self._relay = Relay(self._context, self.metrics, self._incoming, verify=verify)
        local, peer = (replace(self._context, log=self.log.getChild(door)) for door in (LOCAL, PEER))
        self._local_door = LocalDoor(local, default_registry, resolver, self._relay, self._gate)
        self._peer_door = PeerDoor(peer, default_registry, self._incoming, intact)
        self._build_apps(auth or _default_auth(insecure, peer_tls), local_auth or loopback_only, local_hosts)

    def _new_context(
        self, store: Store, router: Router, client: PeerClient, upstream: UpstreamClient, selection: Selection
    ) -> Context:
        return Context(
            identity=self.identity.id,
            listening=lambda: wait_until_listening(lambda: self.identity, client, self.limits, self.log),
            store=store if selection.is_everything else SelectedStore(store, selection, self.log),
            router=router,
            client=client,
            selection=selection,
            limits=self.limits,
            log=self.log,
            upstream=upstream,
            limited=self.metrics.limited.add,
            granted=self.metrics.grants.add,
            in_flight=self._incoming.state,
            is_drained=lambda: self._lifecycle is not None and self._lifecycle.is_withdrawn,
        )

    def _new_gate(self, rights: PullRights | None) -> Gate | None:
        """Return what decides who may pull, if anything is covered. The context then says so to all parts."""
        if rights is None or not rights.coverage:
            return None
        context = replace(self._context, log=self.log.getChild("rights"))
        gate = Gate(context, self._context.upstream, rights, self.metrics.rights.add)
        self._context = replace(self._context, covers=rights.coverage.covers, is_open=gate.repositories.is_open)
        return gate

    def _build_apps(self, auth: Auth, local_auth: Auth, local_hosts: Iterable[str]) -> None:
        layers = Layers(
            self._context,
            self.metrics,
            self.accounting,
            self._spans,
            auth=auth,
            local_auth=local_auth,
            local_hosts=local_hosts,
        )
        self.local = layers.local(self._local_door)
        self.peer = layers.peer(self._peer_door, self._context.router, self._resolver)
        self._status_streams = StatusStreams(self.status)
        sources = OpsSources(
            readiness=self.readiness,
            ready=self.ready,
            figures=self.figures,
            status=self.status,
            history=self.accounting.minutes,
            inspector=Inspector(self._context, self._resolver),
            is_running=lambda: self._lifecycle is not None,
        )
        self.ops = layers.ops(ops_app(sources, self._status_streams))
        self.own_ops = layers.own_ops(self.ops)
        self.local_ops = layers.local_ops(self.own_ops)

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
            except BaseException as error:
                if not is_own_failure(error):
                    raise
                self.log.exception("%s failed to reload", type(part).__name__)

    async def drain(self, timeout: float) -> None:
        """Prepare for the end of serving. Call it while peers can still connect.

        It exits the extensions and withdraws what was advertised. Then it waits for the responses in progress, and
        cuts off those that take longer than `timeout` seconds. Then it waits up to `timeout` seconds for the router's
        leases to be released. The mirror still answers requests, but peers do not find it until `resume`. Idempotent.

        Args:
            timeout: See above.
        """
        lifecycle = self._lifecycle
        self._status_streams.close()
        if lifecycle is not None:
            await lifecycle.withdraw()
        await asyncio.gather(self._local_door.drain(timeout), self._peer_door.drain(timeout))
        if lifecycle is not None:
            await self._relay.drain(timeout)

    async def resume(self) -> None:
        """Undo `drain`. Do nothing if the mirror was not drained. `serve` calls it.

        It enters the router again and then the extensions, and waits for their first step up to
        ``limits.start_timeout`` seconds. What the store has is advertised again as soon as our own peer door answers.
        """
        if self._lifecycle is not None:
            await self._lifecycle.resume()

    def figures(self) -> list[Family]:
        """Return the metrics as plain values, for host agents that do not use Prometheus.

        Counters are never reset while this object exists. May be called from any thread; never raises.
        """
        lifecycle = self._lifecycle
        now = self._gauges() if lifecycle is None else call_on(lifecycle.loop, self._gauges, _GAUGE_TIMEOUT)
        blocked = Gauges(dict.fromkeys(self._plugins, False))
        return [*self.metrics.families(), *(now or blocked).families()]

    def status(self) -> Mapping[str, Any]:
        """Return the document of ``/status``. Call it on the mirror's loop.

        It says who this host is, which parts are ready, which peers it knows and whether they answer, which clients
        used its local door, what they received from where, what is transferred now, and the last warnings.
        """
        lifecycle = self._lifecycle
        return StatusParts(
            identity=self.identity,
            plugins={part: type(each).__name__ for part, each in self._plugins.items()},
            ready=self.readiness(),
            peers=lifecycle.peers() if lifecycle is not None else (),
            unreachable=lifecycle.unreachable() if lifecycle is not None else (),
            client=self._context.client,
            incoming=self._incoming.get,
            advertised=lifecycle.advertised if lifecycle is not None else 0,
            metrics=self.metrics,
            accounting=self.accounting,
            problems=self.log.problems,
        ).document()

    def _gauges(self) -> Gauges:
        lifecycle = self._lifecycle
        return Gauges(
            ready=self.readiness(),
            peers=len(lifecycle.peers()) if lifecycle is not None else 0,
            advertised=lifecycle.advertised if lifecycle is not None else 0,
            transfers=self._relay.transfer_count,
            uploads=self._peer_door.upload_slots.in_use,
            uploads_in_flight=self._peer_door.upload_slots.in_flight,
        )

    def collect(self) -> Iterable[Metric]:
        """Return the metrics for prometheus_client, which calls this after ``registry.register(mirror)``.

        A mirror may be registered in several registries, entered or not. For several mirrors in one registry, use a
        `Collector`. May be called from any thread.

        Raises:
            ImportError: prometheus_client is not installed (the extra ``command``).
        """
        from peili.mirror.metrics import prometheus  # noqa: PLC0415 - needs prometheus_client, which is optional

        return prometheus.metrics(self.figures())

    def describe(self) -> Iterable[Metric]:
        """Return all metrics without values, so that a registry can refuse a name that it already has (ValueError)."""
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

        An app with its own lifespan enters the mirror in it: these frameworks do not run the lifespan of mounted apps.

        Args:
            app: The app; not used.
        """
        async with self:
            yield

    async def __aenter__(self) -> Self:
        """Enter the plug-ins, and wait up to ``limits.start_timeout`` seconds until each was tried once.

        Does not wait for backends. A plug-in that fails is entered again in the background; its error is not raised.

        Raises:
            RuntimeError: The mirror is entered already.
        """
        if self._lifecycle is not None or self._is_exiting:
            raise RuntimeError("this mirror is running already")
        plugins = self._plugins.values()
        self._lifecycle = Lifecycle(
            self._context, plugins, self._extensions, self._relay, self.peer_tls, background=self._run_background
        )
        try:
            await self._lifecycle.start()
        except BaseException as error:
            await self.__aexit__(type(error), error, error.__traceback__)
            raise
        return self

    async def _run_background(self, context: Context) -> None:
        """Run what follows the store. The accounting counts what the runtime got of excluded images, too."""
        async with Tasks(self.log) as tasks:
            if self._gate is not None:
                tasks.start(self._gate.run())
            await self.accounting.run(replace(context, store=cast("Store", self._plugins["store"])))

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Withdraw what was advertised, wait for the leases that are being released, and exit the plug-ins.

        Each step takes at most ``limits.stop_timeout`` seconds, and twice that if a plug-in ignores its cancellation.
        Afterwards the mirror has no task, thread or socket, with two exceptions: a DNS lookup that hangs keeps its
        thread until the system gives up, and such a plug-in keeps its task. Never raises.

        If this task is cancelled meanwhile, also by a cancelled scope of anyio, that is raised in the end.
        """
        lifecycle, self._lifecycle = self._lifecycle, None
        if lifecycle is not None:
            self._is_exiting = True
            try:
                await finish(lifecycle.stop(), exc)
            finally:
                self._is_exiting = False


def _check_arguments(
    auth: Auth | None,
    insecure: bool,
    peer_tls: PeerTLS | None,
    client_ssl: ssl.SSLContext | None,
    default_registry: str | None,
) -> None:
    """Raise ConfigError if arguments of a mirror exclude each other, or if a name is malformed."""
    if insecure and auth is not None:
        raise ConfigError("insecure", "either `auth` or `insecure`, not both")
    if insecure and peer_tls is not None:
        raise ConfigError("insecure", "either `peer_tls` or `insecure`, not both")
    if client_ssl is not None and peer_tls is not None:
        raise ConfigError("client_ssl", "either `peer_tls` or `client_ssl`, not both")
    if default_registry is not None and not is_registry(default_registry):
        raise ConfigError("default_registry", f"a host name such as docker.io, not {default_registry!r}")


def _default_auth(insecure: bool, peer_tls: PeerTLS | None) -> Auth:
    """Return who may use the peer door if the host agent does not decide."""
    if insecure:
        return anyone
    return loopback_only if peer_tls is None else peer_tls.admits


def _is_named(selection: Selection, rights: PullRights | None, registry: str) -> bool:
    """Return whether the operator has named a registry, without a wildcard."""
    return selection.names(registry) or (rights is not None and rights.coverage.names(registry))


def _random_identity() -> str:
    name = "".join(each if each.isascii() and (each.isalnum() or each in "._-") else "-" for each in gethostname())
    return f"{name[:64] or 'host'}-{uuid.uuid4().hex[:12]}"


def _identity_peer(identity: str | Peer | None, peer_tls: PeerTLS | None) -> Peer:
    certified = peer_tls.identity if peer_tls is not None else None
    own = identity if isinstance(identity, Peer) else Peer(identity or certified or _random_identity(), ())
    if not is_identity(own.id):
        raise ConfigError("identity", f"up to 255 of the visible ASCII characters, not {own.id!a}")
    if certified is not None and own.id != certified:
        raise ConfigError("identity", f"{certified!a}, which the certificate shows, not {own.id!a}")
    return own
