"""Puts layers around the doors and the ops app, which count, check and pace the requests.

From the outside to the inside, they are::

    local:  RequestMetrics > StuckRequests > RequestChecks > AccessCheck > Pacing > LocalDoor
    peer:   RequestMetrics > AccessCheck > Pacing > PeerDoor
                                                  > PluginRouteMiddleware > a route of a plug-in
    ops:    RequestChecks > HostHeaderCheck > Starlette

`serve` adds the layers of its server (see ``server/protocol.py``) and, around the local door, `OpsMiddleware`, which
also checks the Host of requests to the ops app. `Pacing` is there only if a number of bytes per second is limited.
"""

from __future__ import annotations

from collections.abc import Iterable

from starlette import routing
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.types import ASGIApp

from peili.mirror.accounting.accounting import Accounting
from peili.mirror.doors.access import AccessCheck, Auth, or_this_host
from peili.mirror.doors.local import LocalDoor
from peili.mirror.doors.local_checks import RequestChecks, check_host, check_no_browser, check_same_site
from peili.mirror.doors.middleware import RESOLVER_PATH, ROUTER_PATH, PluginRouteMiddleware, RequestMetrics
from peili.mirror.doors.pacing import door_pacers, paced
from peili.mirror.doors.peer import PeerDoor
from peili.mirror.doors.stuck_requests import StuckRequests
from peili.mirror.metrics.counters import LOCAL, PEER, Metrics
from peili.mirror.metrics.spans import Spans
from peili.mirror.plugins.interfaces import Context, Router
from peili.mirror.plugins.resolver import Resolver
from peili.mirror.support.tasks import is_own_failure


class Layers:
    """Puts layers around the doors of one mirror.

    Args:
        context: The context of the mirror.
        metrics: Counts the requests.
        accounting: Learns of the requests to the local door.
        spans: Makes a span for each request.
        auth: Decides who may use the peer door.
        local_auth: Decides who may use the local door.
        local_hosts: The names of the local door; see `check_host`.
    """

    def __init__(
        self,
        context: Context,
        metrics: Metrics,
        accounting: Accounting,
        spans: Spans,
        *,
        auth: Auth,
        local_auth: Auth,
        local_hosts: Iterable[str],
    ) -> None:
        self._context = context
        self._metrics = metrics
        self._accounting = accounting
        self._spans = spans
        self._auth = auth
        self._local_auth = local_auth
        self._host_check = check_host(local_hosts)
        self._pacers = door_pacers(context.limits, context.limited)

    def local(self, door: LocalDoor) -> ASGIApp:
        """Return the app of the local door."""
        app: ASGIApp = AccessCheck(paced(door, self._pacers.local), LOCAL, self._local_auth, self._context)
        app = RequestChecks(app, (self._host_check, check_no_browser), self._context)
        return self._counted(StuckRequests(app, self._context), LOCAL)

    def peer(self, door: PeerDoor, router: Router, resolver: Resolver) -> ASGIApp:
        """Return the app of the peer door, with the routes of the router and the resolver."""
        # Not a Starlette application: its middleware would answer an exception of a route before we can log it.
        mounts = [self._mount(ROUTER_PATH, router), self._mount(RESOLVER_PATH, resolver)]
        app: ASGIApp = routing.Router([*mounts, *door.routes()], redirect_slashes=False, default=door)
        app = paced(app, self._pacers.peer)
        app = AccessCheck(app, PEER, self._auth, self._context, identity=self._context.identity)
        return self._counted(app, PEER)

    def ops(self, app: ASGIApp) -> ASGIApp:
        """Return the ops app as a host agent mounts it."""
        return RequestChecks(app, [check_same_site], self._context)

    def own_ops(self, ops: ASGIApp) -> ASGIApp:
        """Return `ops` for an address of its own. It refuses the same Host headers as the local door."""
        return RequestChecks(ops, [self._host_check], self._context)

    def local_ops(self, own_ops: ASGIApp) -> ASGIApp:
        """Return `own_ops` for the address of the local door: for the clients of that door and for this host."""
        return AccessCheck(own_ops, LOCAL, or_this_host(self._local_auth), self._context)

    def _counted(self, app: ASGIApp, door: str) -> ASGIApp:
        return RequestMetrics(app, door, self._metrics, self._accounting, self._spans)

    def _mount(self, path: str, plugin: Router | Resolver) -> routing.Mount:
        """Return the routes of the router or of the resolver, below `path`; none if it fails."""
        try:
            routes = list(plugin.routes())
        except BaseException as error:
            if not is_own_failure(error):
                raise
            self._context.log.exception("%s failed to return its routes", type(plugin).__name__)
            routes = []
        return routing.Mount(path, PluginRouteMiddleware(ExceptionMiddleware(routing.Router(routes)), self._context))
