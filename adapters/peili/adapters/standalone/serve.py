"""`peili serve`: builds the mirror from its configuration, runs it, and ends it when a signal says so."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Generator, Sequence
from contextlib import AbstractAsyncContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass

from peili.adapters.standalone import logs
from peili.adapters.standalone.about import version
from peili.adapters.standalone.config.config import OPEN_IT, Config
from peili.adapters.standalone.systemd import descriptors
from peili.adapters.standalone.systemd.activation import Activated, activated
from peili.adapters.standalone.systemd.notify import Notifier
from peili.mirror import ConfigError, Mirror, Plugin, Plugins, PushRouter, Router, serve
from peili.mirror.server.listening import bind
from peili.mirror.support.watchdog import Watchdog
from peili.routers.memory import MemoryRouter


def build(config: Config, plugins: Plugins | None = None, *, local: Sequence[str] = ()) -> Mirror:
    """The mirror that `config` describes, with logging set up. Its plug-ins are looked for among `plugins`; by default
    those that are built in or installed. `local` is where its local door is, if not where `config` says. Raises
    ConfigError.
    """
    plugins = plugins or Plugins()
    store = config.store.build(plugins.store)
    router = _router(config, plugins)
    resolver = config.resolver.build(plugins.resolver)
    return Mirror(
        store,
        router,
        resolver,
        identity=config.mirror.identity,
        insecure=config.peer.insecure,
        registries=config.mirror.registries,
        exclude=config.mirror.exclude,
        default_registry=config.mirror.default_registry,
        verify=config.mirror.verify,
        extensions=_extensions(config, local),
        limits=config.limits,
        log=logs.configure(config.log.format, config.log.level),
    )


def _router(config: Config, plugins: Plugins) -> Router:
    """The router; none that waits for a program around it, which the command is not. Raises ConfigError."""
    router = config.router.build(plugins.router)
    if type(router) in {PushRouter, MemoryRouter}:  # a plug-in's subclass may feed itself
        why = f"{config.router.kind} is only for embedding; use static or mdns"
        raise ConfigError("router.kind", why, source=config.router.sources.get("kind"))
    return router


def _extensions(config: Config, local: Sequence[str]) -> list[Plugin]:
    if not config.hosts.apply:
        return []
    try:
        from peili.adapters.standalone import hosts  # noqa: PLC0415 - needs the extra `command`
    except ImportError as error:
        raise ConfigError("hosts.apply", str(error)) from error
    return [hosts.extension(config, local)]


def run(config: Config, plugins: Plugins | None = None) -> None:
    """Build the mirror and serve it until SIGTERM or SIGINT. Sockets that the process was started with come before the
    configured addresses. The process may open as many descriptors from then on as the system lets it. Raises
    ListenError, ConfigError; then nothing has changed on this host.
    """
    with activated(os.environ) as given:
        mirror = build(config, plugins, local=given.local_addresses)
        descriptors.raise_limit(logging.getLogger(logs.LOGGER))
        with _bound(config, mirror, given) as sockets:
            asyncio.run(_run(config, mirror, sockets, logging.getLogger(logs.LOGGER)))


@dataclass(frozen=True, slots=True)
class _Sockets:
    """What each door is served on; the peer door may have none."""

    local: Sequence[socket.socket]
    peer: Sequence[socket.socket]


@contextmanager
def _bound(config: Config, mirror: Mirror, given: Activated) -> Generator[_Sockets]:
    """Listening before the mirror is entered: its extensions tell others of the ports, and change files for that."""
    with ExitStack() as stack:
        doors: list[list[socket.socket]] = []
        for addresses, any_host in (
            (given.local or config.local, "127.0.0.1"),
            (given.peer or config.peer.listen, "::"),
        ):
            sockets = bind(addresses, any_host=any_host, reader_timeout=mirror.limits.reader_timeout)
            doors.append([stack.enter_context(each) for each in sockets])
        yield _Sockets(*doors)


async def _run(config: Config, mirror: Mirror, sockets: _Sockets, log: logging.Logger) -> None:
    with Notifier.from_environment(os.environ) as notifier, _stop_signals() as stop:
        async with (
            _watchdog(config, notifier),
            mirror,
            serve(
                mirror,
                local=sockets.local,
                peer=sockets.peer or None,
                advertise=config.peer.advertise,
            ) as doors,
        ):
            for each in (*sockets.local, *sockets.peer):
                each.close()  # the doors have their own: nobody shall wait at a port that they have left
            _tell(config, mirror, doors.local_addresses, doors.peer_addresses, log)
            notifier.send("READY=1")
            name = await stop
            notifier.send("STOPPING=1")
            log.info("%s: stopping", name)
            await mirror.drain(config.limits.drain_timeout)
    log.info("stopped")


def _watchdog(config: Config, notifier: Notifier) -> AbstractAsyncContextManager[object]:
    """Ours, telling systemd's if there is one. With ours off, systemd's time is the bound: it would end us too."""
    timeout = config.watchdog or notifier.watchdog
    if timeout is None:
        return nullcontext()
    interval = notifier.watchdog / 3 if notifier.watchdog is not None else None
    return Watchdog(timeout, interval=interval, notify=notifier.alive)


@contextmanager
def _stop_signals() -> Generator[asyncio.Future[str]]:
    """The name of the first signal to stop, once it came. The second one ends the process as if it were not handled."""
    loop = asyncio.get_running_loop()
    stop: asyncio.Future[str] = loop.create_future()
    wanted = (signal.SIGTERM, signal.SIGINT)

    def forget() -> None:
        for each in wanted:
            loop.remove_signal_handler(each)
            signal.signal(each, signal.SIG_DFL)

    def caught(which: signal.Signals) -> None:
        forget()
        stop.set_result(which.name)

    for each in wanted:
        loop.add_signal_handler(each, caught, each)
    try:
        yield stop
    finally:
        forget()


def _tell(config: Config, mirror: Mirror, local: tuple[str, ...], peer: tuple[str, ...], log: logging.Logger) -> None:
    log.info(
        "peili %s is up: identity %s, runtime door %s, peer door %s, store %s, router %s, resolver %s",
        version("peili"),
        mirror.identity.id,
        ", ".join(local),
        ", ".join(peer) or "none",
        config.store.kind,
        config.router.kind,
        config.resolver.kind,
    )
    if peer and not config.peer.insecure:
        log.warning("the peer door refuses every other host: %s", OPEN_IT)
