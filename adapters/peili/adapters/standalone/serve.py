"""`peili serve`: builds the mirror from its configuration, runs it, and ends it at a signal."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Generator, Sequence
from contextlib import AbstractAsyncContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace

from peili.adapters.standalone import hosts, logs
from peili.adapters.standalone.about import version
from peili.adapters.standalone.config import Config, PluginSection
from peili.adapters.standalone.identity import default_identity
from peili.adapters.standalone.systemd import Notifier, PassedSockets, passed_sockets
from peili.adapters.standalone.upstreams import root_finder
from peili.mirror import (
    ConfigError,
    LocalCertificate,
    Mirror,
    Plugins,
    PushRouter,
    Router,
    Serving,
    Watchdog,
    clients_in,
    serve,
)
from peili.mirror.server.listening import bind
from peili.routers.file import FileRouter
from peili.routers.memory import MemoryRouter
from peili.routers.static import StaticRouter

_ROUTERS_WITH_SCHEME = frozenset({"dns", "kubernetes", "talos"})
"""They make the URLs of peers, with the scheme that their option says."""
_TLS_REASON = "because [peer] has a key or certificates, and hosts connect to peers with TLS"
_MAX_DESCRIPTORS = 1 << 20
"""Linux's default maximum for a process (fs.nr_open). Some systems refuse an infinite limit."""


def build(config: Config, plugins: Plugins | None = None, *, local: Sequence[str] = ()) -> Mirror:
    """Build the mirror.

    Args:
        config: The configuration.
        plugins: Where plug-ins are looked up; by default those that are built in or installed.
        local: The addresses of the local door, if they are not those in `config`.

    Raises:
        ConfigError: A plug-in does not exist, or one of its options is wrong.
    """
    plugins = plugins or Plugins()
    identity = config.mirror.identity or default_identity(config)
    store = config.store.build(plugins.store)
    router = _router(config, plugins)
    resolver = config.resolver.build(plugins.resolver)
    return Mirror(
        store,
        router,
        resolver,
        identity=identity,
        local_auth=clients_in(config.local.allow_clients),
        local_hosts=config.local.allow_hosts,
        insecure=config.peer.insecure,
        peer_tls=config.peer.build_tls(identity),
        registries=config.mirror.registries,
        exclude=config.mirror.exclude,
        default_registry=config.mirror.default_registry,
        verify=config.mirror.verify,
        rights=config.mirror.rights,
        extensions=[hosts.extension(config, local)] if config.hosts.apply else [],
        upstream_roots=root_finder(config.upstreams, hosts.upstream_roots(config, local)),
        limits=config.limits,
        log=logging.getLogger(logs.LOGGER),
    )


def _router(config: Config, plugins: Plugins) -> Router:
    """Build the router. Raises ConfigError for one that gets its peers from a program that embeds peili."""
    has_tls = config.peer.shared_key_file is not None or config.peer.tls is not None
    section = _with_https(config.router) if has_tls else config.router
    router = section.build(plugins.router)
    if type(router) in {PushRouter, MemoryRouter}:  # a third-party subclass may find its peers itself
        expected = f"{config.router.kind} is only for embedding; use static, file, dns, mdns, kubernetes or talos"
        raise ConfigError("router.kind", expected, source=config.router.sources.get("kind"))
    if has_tls and isinstance(router, StaticRouter):
        _check_urls(router, config.router)
    if has_tls and isinstance(router, FileRouter):
        _check_file(router, config.router)
    return router


def _with_https(section: PluginSection) -> PluginSection:
    """Return the section with https as the scheme of the URLs that the router makes. Raises ConfigError for http."""
    if section.kind not in _ROUTERS_WITH_SCHEME:
        return section
    if section.options.get("scheme") == "http":
        raise ConfigError("router.scheme", f"https, {_TLS_REASON}", source=section.sources.get("scheme"))
    return replace(section, options={"scheme": "https", **section.options})


def _check_urls(router: StaticRouter, section: PluginSection) -> None:
    """Check that the peers have https URLs, because the mirror uses no others. Raises ConfigError."""
    for index, peer in enumerate(router.listed):
        for url in peer.urls:
            if not url.startswith("https:"):
                source = section.sources.get("peers")
                raise ConfigError(f"router.peers[{index}]", f"an https URL, {_TLS_REASON}, not {url}", source=source)


def _check_file(router: FileRouter, section: PluginSection) -> None:
    """Check that the file lists https URLs now. Raises ConfigError. The router reports a file that can't be read."""
    for url in (url for peer in router.read() for url in peer.urls):
        if not url.startswith("https:"):
            expected = f"a file with https URLs, {_TLS_REASON}, not {url}"
            raise ConfigError("router.path", expected, source=section.sources.get("path"))


def run(config: Config, plugins: Plugins | None = None) -> None:
    """Set up logging, build the mirror and serve it until SIGTERM or SIGINT.

    The doors listen on sockets that the process was started with, else on the configured addresses. The limit on open
    files of the process is raised as far as the system allows.

    Args:
        config: The configuration.
        plugins: Where plug-ins are looked up; by default those that are built in or installed.

    Raises:
        ListenError: An address cannot be listened on. Nothing on this host has changed then.
        ConfigError: As for `build`. Nothing on this host has changed then.
    """
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # must not end the process before `_reload_at_signal`
    log = logs.configure(config.log.format, config.log.level)
    with passed_sockets(os.environ) as passed:
        mirror, local_ssl = build(config, plugins, local=passed.local_addresses), config.local.build_ssl()
        raise_descriptor_limit(log)
        with _listen(config, mirror, passed) as sockets:
            gc.freeze()  # what was made so far stays; to search it for garbage stops the event loop for 34 ms each time
            asyncio.run(_run(config, mirror, sockets, local_ssl, log))


def raise_descriptor_limit(log: logging.Logger) -> None:
    """Raise the soft limit on open files to the hard limit, and log the result. Does not raise.

    The library does not do this, because a process's limits belong to the program.
    """
    if sys.platform == "win32":
        return
    import resource  # noqa: PLC0415 - does not exist on Windows

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    target = _MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else hard
    if soft == resource.RLIM_INFINITY or soft >= target:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (target, hard))
    except (OSError, ValueError) as error:
        log.warning("this process may open %d files; raising the limit to %d failed: %s", soft, target, error)
    else:
        log.info("this process may open %d files; the limit was %d at the start", target, soft)


@dataclass(frozen=True, slots=True)
class _Sockets:
    """The listening sockets of each door. The lists for the peer door and for ops may be empty."""

    local: Sequence[socket.socket]
    peer: Sequence[socket.socket]
    ops: Sequence[socket.socket]


@contextmanager
def _listen(config: Config, mirror: Mirror, passed: PassedSockets) -> Generator[_Sockets]:
    """Listen on all addresses, before the mirror is entered: its extensions write the ports into files."""
    with ExitStack() as stack:
        doors: list[list[socket.socket]] = []
        for addresses, any_host in (
            (passed.local or config.local.listen, "127.0.0.1"),
            (passed.peer or config.peer.listen, "::"),
            (passed.ops or config.ops, "127.0.0.1"),
        ):
            sockets = bind(addresses, any_host=any_host, reader_timeout=mirror.limits.reader_timeout)
            doors.append([stack.enter_context(each) for each in sockets])
        yield _Sockets(*doors)


async def _run(
    config: Config, mirror: Mirror, sockets: _Sockets, local_ssl: LocalCertificate | None, log: logging.Logger
) -> None:
    with Notifier.from_environment(os.environ) as notifier, _stop_signals() as stop, _reload_at_signal(mirror, log):
        async with (
            _watchdog(config, notifier),
            mirror,
            serve(
                mirror,
                local=sockets.local,
                peer=sockets.peer or None,
                ops=sockets.ops or None,
                local_ssl=local_ssl,
                advertise=config.peer.advertise,
            ) as serving,
        ):
            for each in (*sockets.local, *sockets.peer, *sockets.ops):
                each.close()  # the servers have duplicates; when those are closed, no client must wait at the port
            _log_start(config, mirror, serving, log)
            notifier.send("READY=1")
            name = await stop
            notifier.send("STOPPING=1")
            log.info("%s: stopping", name)
            await mirror.drain(config.limits.drain_timeout)
    log.info("stopped")


def _watchdog(config: Config, notifier: Notifier) -> AbstractAsyncContextManager[object]:
    """Return the watchdog, which ends the process if the event loop is blocked, and sends systemd's heartbeats.

    If the configuration switches it off, but systemd expects heartbeats, systemd's timeout applies.
    """
    timeout = config.watchdog or notifier.watchdog
    if timeout is None:
        return nullcontext()
    interval = notifier.watchdog / 3 if notifier.watchdog is not None else None
    return Watchdog(timeout, interval=interval, notify=notifier.alive)


@contextmanager
def _stop_signals() -> Generator[asyncio.Future[str]]:
    """Yield a future for the name of the first SIGTERM or SIGINT. The second signal ends the process at once."""
    loop = asyncio.get_running_loop()
    stop: asyncio.Future[str] = loop.create_future()
    signals = (signal.SIGTERM, signal.SIGINT)

    def restore() -> None:
        for each in signals:
            loop.remove_signal_handler(each)
            signal.signal(each, signal.SIG_DFL)

    def handle(received: signal.Signals) -> None:
        restore()
        stop.set_result(received.name)

    for each in signals:
        loop.add_signal_handler(each, handle, each)
    try:
        yield stop
    finally:
        restore()


@contextmanager
def _reload_at_signal(mirror: Mirror, log: logging.Logger) -> Generator[None]:
    """Let the plug-ins read their files again at each SIGHUP. The configuration is not read again."""

    def reload() -> None:
        log.info("SIGHUP: reading again what plug-ins read from files")
        mirror.reload()

    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, reload)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGHUP)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the process is about to end, and must not end earlier


def _log_start(config: Config, mirror: Mirror, serving: Serving, log: logging.Logger) -> None:
    peer = serving.peer_addresses
    log.info(
        "peili %s is up: configuration %s, identity %s, local door %s, peer door %s, ops %s, store %s, router %s, "
        "resolver %s",
        version("peili"),
        config.file or "without a file",
        mirror.identity.id,
        ", ".join(serving.local_addresses),
        ", ".join(peer) or "none",
        ", ".join(serving.ops_addresses),
        config.store.kind,
        config.router.kind,
        config.resolver.kind,
    )
    if config.local.is_only_for_this_host:
        log.warning("the local door refuses every other host: list the networks of clients in local.allow_clients")
    if config.mirror.authorize and peer and mirror.peer_tls is None:
        log.warning("what mirror.authorize covers is not given to other hosts, because they can't prove who they are")
    if peer and config.peer.insecure:
        log.warning("peer.insecure is set, so everyone who reaches the peer door can read this host's images")
    elif peer and mirror.peer_tls is None:
        advice = "set peer.shared_key_file to a file that `peili keys new` makes once for all hosts"
        log.warning("the peer door refuses every other host: %s", advice)
