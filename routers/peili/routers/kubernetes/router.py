"""A router whose members are the endpoints of a Service of Kubernetes, followed by list and watch."""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections.abc import AsyncGenerator, Collection, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from typing_extensions import override

from peili.mirror import Backoff, ConfigError, Context, Limits, MembershipRouter, Options, Peer, base_url
from peili.routers.kubernetes.api import ApiConnection, ApiFailed, ClusterApi, VersionGone, WatchBroken, WatchEvent
from peili.routers.kubernetes.slices import PodAddress, label_of, peers_of, read_slice
from peili.routers.member_urls import MemberUrls, read_member_urls

CREDENTIALS = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Where the kubelet puts the token of a pod's service account."""

_LOG = logging.getLogger(__name__)
_NODES = "/api/v1/nodes"
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")  # a DNS label, as the names of Services and namespaces are
_LABEL = re.compile(r"([a-z0-9.-]{1,253}/)?[A-Za-z0-9]([\w.-]{0,61}[A-Za-z0-9])?")


@dataclass(frozen=True, slots=True)
class KubernetesOptions:
    """The checked options of `KubernetesRouter`.

    Attributes:
        service: The Service whose endpoints are the members.
        namespace: Its namespace; None for that of this pod.
        port: The port of the peer doors; None for that of the endpoints.
        urls: What the URLs of the members have in common.
        zone_label: The label of nodes that has their zone; None for what the endpoints say.
        api_server: The URL of the API server.
        credentials: The folder with ``token``, ``ca.crt`` and ``namespace``.
        timeout: Seconds until a request to the API server fails.
    """

    service: str
    namespace: str | None
    port: int | None
    urls: MemberUrls
    zone_label: str | None
    api_server: str
    credentials: Path
    timeout: float

    @classmethod
    def from_config(cls, config: Mapping[str, Any], environ: Mapping[str, str]) -> Self:
        """Check the options in `config`; `environ` may have the address of the API server. Raises ConfigError."""
        known = ("service", "namespace", "port", "scheme", "path", "tls_name", "any_address", "zone_label")
        options = Options(config, *known, "api_server", "credentials", "timeout")
        return cls(
            _read_name(options, "service", "peili"),
            _read_name(options, "namespace", None),
            options.integer("port", None, minimum=1, maximum=65535, expected="a port from 1 to 65535"),
            read_member_urls(options),
            _read_zone_label(options),
            _read_api_server(options, environ),
            options.path("credentials", CREDENTIALS, absolute=True),
            options.number("timeout", 10.0, minimum=0.1, expected="seconds, 0.1 or more"),
        )


def _read_name(options: Options, key: str, default: Any) -> Any:
    expected = f"the name of a {key}"
    name = options.text(key, default, expected=expected)
    if key in options and not _NAME.fullmatch(name):
        raise options.wrong(key, expected)
    return name


def _read_zone_label(options: Options) -> str | None:
    expected = "the name of a label, such as topology.kubernetes.io/zone"
    label = options.text("zone_label", None, expected=expected)
    if label is not None and not _LABEL.fullmatch(label):
        raise options.wrong("zone_label", expected)
    return label


def _read_api_server(options: Options, environ: Mapping[str, str]) -> str:
    expected = "the URL of the API server, such as https://10.96.0.1:443"
    host, port = environ.get("KUBERNETES_SERVICE_HOST"), environ.get("KUBERNETES_SERVICE_PORT", "443")
    default = f"https://[{host}]:{port}" if host and ":" in host else f"https://{host}:{port}" if host else None
    url = options.text("api_server", default, expected=expected)
    if url is None:
        raise ConfigError("api_server", f"{expected}; this process does not run in a pod, which would know it")
    try:
        return base_url(url)
    except ValueError as error:
        raise options.wrong("api_server", expected) from error


class KubernetesRouter(MembershipRouter):
    """A router whose members are the endpoints of a Service. This host may be one of them.

    The Service is headless: it has ``clusterIP: None``, and its endpoints are the pods of the DaemonSet. The router
    lists its EndpointSlices and then watches them. A pod on the network of its node has the node's name as its id, and
    each peer has the labels ``zone`` and ``node``, as far as they are known. If the API server does not answer, the
    last members stay.

    The service account of the pod needs a Role that allows to list and watch ``endpointslices``, and for `zone_label`
    a ClusterRole that allows to list ``nodes``.
    """

    def __init__(self, options: KubernetesOptions) -> None:
        self._options = options
        self._log: logging.Logger = _LOG
        self._limits = Limits()

    @override
    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Create a router from its options.

        They are ``service`` (``peili``) and ``namespace`` (that of this pod); ``port`` of the peer doors (that of the
        endpoints which is named ``peer``, or their only one); ``scheme`` (``http``) and ``path`` of the peer doors;
        ``tls_name``, which all certificates show; ``any_address`` (false), which allows addresses such as loopback;
        ``zone_label``, the label of nodes that has their zone (what the endpoints say); ``api_server``, a URL, and
        ``credentials``, a folder (those of the pod); and ``timeout`` (10) in seconds.
        """
        return cls(KubernetesOptions.from_config(config, os.environ))

    @override
    @asynccontextmanager
    async def run(self, context: Context) -> AsyncGenerator[None, None]:
        self._log, self._limits = context.log, context.limits
        async with super().run(context):
            yield

    @override
    async def members(self) -> AsyncGenerator[Collection[Peer], None]:
        loop = asyncio.get_running_loop()
        backoff = Backoff(self._limits.backoff_min, self._limits.backoff_max, jitter=0.25)
        following = _Following(self._options, self._log)
        problem = ""
        while True:
            started = loop.time()
            try:
                async with aclosing(following.run()) as sets:
                    async for peers in sets:
                        problem = ""
                        if peers is not None:
                            yield peers
            except (VersionGone, WatchBroken) as error:
                self._log.debug("the members are watched again: %s", error)
            except ApiFailed as error:
                if str(error) != problem:
                    problem = str(error)
                    self._log.warning("the API server can't be asked, the last known members stay: %s", problem)
            if loop.time() - started > self._limits.backoff_max:  # the watch worked for a while
                backoff.reset()
            await backoff.sleep()


class _Following:
    """Follows the slices of the Service. It remembers them, and their version, between two watches."""

    def __init__(self, options: KubernetesOptions, log: logging.Logger) -> None:
        self._options = options
        self._log = log
        self._api = ClusterApi(options.api_server, options.credentials, options.timeout)
        self._path = ""
        self._params = {"labelSelector": f"kubernetes.io/service-name={options.service}"}
        self._version = ""  # from which the next watch continues; empty if the slices have to be listed
        self._slices: dict[str, tuple[PodAddress, ...]] = {}
        self._zones = _NodeZones(options.zone_label, log)

    async def run(self) -> AsyncGenerator[list[Peer] | None, None]:
        """Yield the members at each change, and None if the server answers without a change, until a watch ends.

        Raises:
            ApiFailed: The server does not answer, or refuses. The next call continues where this one stopped.
            VersionGone: The next call lists the slices again.
        """
        async with self._api.connect() as connection:
            if not self._version:
                await self._list(connection)
                yield await self._peers(connection)
            try:
                async with aclosing(connection.watch(self._path, self._params, self._version)) as events:
                    async for event in events:
                        is_changed = self._apply(event)
                        yield await self._peers(connection) if is_changed else None
            except VersionGone:
                self._version = ""
                raise

    async def _list(self, connection: ApiConnection) -> None:
        namespace = self._options.namespace or await self._api.namespace()
        self._path = f"/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices"
        listing = await connection.list(self._path, self._params)
        self._slices = {_name(item): read_slice(item, self._options.port) for item in listing.items}
        self._version = listing.version
        if not any(self._slices.values()):
            self._log.info("the Service %s in the namespace %s has no endpoints yet", self._options.service, namespace)

    def _apply(self, event: WatchEvent) -> bool:
        """Take over a change. Returns whether it may change the members."""
        self._version = event.version
        if event.kind == "BOOKMARK":
            return False
        name = _name(event.item)
        before = self._slices.pop(name, None)
        if event.kind == "DELETED":
            return bool(before)
        self._slices[name] = read_slice(event.item, self._options.port)
        return self._slices[name] != before

    async def _peers(self, connection: ApiConnection) -> list[Peer]:
        endpoints = [each for endpoints in self._slices.values() for each in endpoints]
        zones = await self._zones.of(connection, {each.node for each in endpoints if each.node is not None})
        return peers_of(endpoints, self._options.urls, zones)


class _NodeZones:
    """Knows the zones of nodes from one of their labels. Without a label, it knows none and asks nothing."""

    def __init__(self, label: str | None, log: logging.Logger) -> None:
        self._label = label
        self._log = log
        self._zones: dict[str, str] = {}
        self._known: set[str] = set()
        self._problem = ""

    async def of(self, connection: ApiConnection, nodes: Collection[str]) -> Mapping[str, str]:
        """Return the zones of nodes by name. The server is asked only if it was not yet asked for one of `nodes`."""
        if self._label is not None and not self._known.issuperset(nodes):
            try:
                listing = await connection.list(_NODES, {}, metadata_only=True)
            except ApiFailed as error:
                if str(error) != self._problem:
                    self._problem = str(error)
                    self._log.warning("the zones of the nodes are not known: %s", error)
                return self._zones
            self._known, self._problem = set(nodes), ""
            zones = {_name(item): label_of(item, self._label) for item in listing.items}
            self._zones = {name: zone for name, zone in zones.items() if zone is not None}
        return self._zones


def _name(item: Mapping[str, Any]) -> str:
    try:
        return str(item["metadata"]["name"])
    except (KeyError, TypeError) as error:
        raise ApiFailed("an object has no name") from error
