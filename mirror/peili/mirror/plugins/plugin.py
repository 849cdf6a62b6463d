"""What stores, routers and resolvers have in common, and what the mirror gives them."""

from __future__ import annotations

import logging
from abc import ABC
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from peili.mirror.limits import Limits
from peili.mirror.support.options import Options

if TYPE_CHECKING:
    from peili.mirror.client.client import PeerClient
    from peili.mirror.oci.selection import Selection
    from peili.mirror.peer_api.peers import Peer
    from peili.mirror.plugins.router import Router
    from peili.mirror.plugins.store import Store


def _uncounted(limit: str) -> None:
    """For a plug-in that is tried alone."""


@dataclass(frozen=True, slots=True)
class Context:
    """What the mirror gives to its plug-ins. Good while `Plugin.run` is entered.

    Attributes:
        identity: this host's id among its peers.
        listening: waits until this host's own peer door answers, and returns this host as a peer. Never returns
            where there is no peer door.
        store, router: the mirror's.
        client: speaks to peers.
        selection: which registries and repositories this mirror is for.
        limits: the mirror's bounds.
        log: a logger of this plug-in's own.
        limited: counts, in the mirror's metrics, that a bound of this name was reached.
    """

    identity: str
    listening: Callable[[], Awaitable[Peer]]
    store: Store
    router: Router
    client: PeerClient
    selection: Selection
    limits: Limits
    log: logging.Logger
    limited: Callable[[str], None] = _uncounted


class Plugin(ABC):  # noqa: B024 - a base of interfaces; each method has a default
    """Built without an event loop, from its own options only. Used on the mirror's loop, concurrently, cancellable at
    every await. May be entered again after it was left. One that can't serve two mirrors at a time raises RuntimeError
    where it is entered a second time meanwhile.
    """

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Build one from what stands under its section besides ``kind``. Raises ConfigError(key, expected).

        By default there are no options.
        """
        Options(config)
        return cls()

    def run(self, context: Context) -> AbstractAsyncContextManager[None]:
        """Entered before use and left after it, in one task. Entering must not wait for a backend."""
        return nullcontext()

    def ready(self) -> bool:
        """Whether it can do its work now. Called often, must be cheap."""
        return True


def running_already(plugin: Plugin) -> RuntimeError:
    """What to raise where `plugin`, which serves one mirror at a time, is entered by a second one."""
    return RuntimeError(f"this {type(plugin).__name__} is running already; each mirror needs one of its own")
