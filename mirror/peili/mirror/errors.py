"""All errors that peili raises on purpose.

    PeiliError
      x AuthorizationRequired  the registry wants to know who asks
      x NotFound             the content does not exist here, or peili does not serve it
      + Unavailable          there is no answer now; another try may succeed
        x StoreUnavailable
        x RouterUnavailable
        x PeerUnavailable
      x Aborted              content that was arriving will never be whole
      x ConfigError          an option is wrong; names it and says what would be right
      x PluginNotFound       no plug-in has this name; lists the names that exist
      x ListenError          peili can't listen on an address; says why

A malformed value (digest, reference, range) raises `ValueError` where it is constructed. Errors of gRPC and of the
operating system are translated where they occur, with ``raise … from``.
"""

from __future__ import annotations

from collections.abc import Collection
from enum import StrEnum


class FailureReason(StrEnum):
    """Why a peer could not be used: `PeerUnavailable.reason`, and the values of `Want.failed`."""

    UNREACHABLE = "unreachable"
    """There was no connection, or it broke before the response."""
    REFUSED = "refused"
    """The peer answered without the content, for example with 404 or 403."""
    BUSY = "busy"
    """The peer has the content, but already serves as many requests as its limits allow."""
    SILENT = "silent"
    """The peer sent nothing for too long."""
    SLOW = "slow"
    """The peer sent less than the minimum rate."""
    BROKEN = "broken"
    """The transfer ended early."""
    WRONG = "wrong"
    """The peer sent other bytes than those of the content."""
    STARVING = "starving"
    """The peer has no further byte of the content in flight, and waits for nobody who has. Nobody is to blame."""
    WAITING = "waiting"
    """The peer waits for further bytes itself, for longer than this host can wait. Nobody is to blame."""
    CIRCULAR = "circular"
    """The peer gets the content from this host. Nobody is to blame."""


class PeiliError(Exception):
    """The base of all errors that peili raises on purpose."""


class AuthorizationRequired(PeiliError):
    """The registry wants to know who asks before it says what a tag means.

    Attributes:
        challenge: What the requester has to show, as the value of a WWW-Authenticate header.
    """

    def __init__(self, challenge: str) -> None:
        self.challenge = challenge
        super().__init__("the registry wants to know who asks")


class NotFound(PeiliError):
    """The requested content does not exist, or is not served."""


class Unavailable(PeiliError):
    """There is no answer now; another try may succeed."""


class StoreUnavailable(Unavailable):
    """The store cannot answer now: its backend is away or failed."""


class RouterUnavailable(Unavailable):
    """The router cannot look up or record keys now."""


class PeerUnavailable(Unavailable):
    """A peer could not be reached, did not answer in time, refused, or sent something wrong.

    Attributes:
        reason: A `FailureReason`.
    """

    def __init__(self, message: str, reason: str = FailureReason.UNREACHABLE) -> None:
        self.reason = reason
        super().__init__(message)


class Aborted(PeiliError):
    """Content that was arriving will never be whole."""


class ConfigError(PeiliError):
    """An option is wrong.

    Attributes:
        key: The dotted name of the option.
        expected: What would be right.
        source: The file or the environment variable that the option came from, if known.
    """

    def __init__(self, key: str, expected: str, *, source: str | None = None) -> None:
        self.key = key
        self.expected = expected
        self.source = source
        super().__init__(key, expected)

    def __str__(self) -> str:
        where = f"{self.source}: " if self.source else ""
        return f"{where}{self.key}: {self.expected}"

    def within(self, section: str, *, source: str | None = None) -> ConfigError:
        """Return the same error for an enclosing section.

        Args:
            section: The dotted name of the section. It is put before the key.
            source: The source, if the error has none.
        """
        return ConfigError(f"{section}.{self.key}", self.expected, source=self.source or source)


class PluginNotFound(PeiliError):
    """No plug-in has this name.

    Attributes:
        group: The group that was searched: ``peili.stores``, ``peili.routers`` or ``peili.resolvers``.
        name: The name.
        known: The names that exist.
    """

    def __init__(self, group: str, name: str, known: Collection[str]) -> None:
        self.group = group
        self.name = name
        self.known = tuple(sorted(known))
        super().__init__(group, name, self.known)

    def __str__(self) -> str:
        kind = self.group.removeprefix("peili.").removesuffix("s")
        return f"no {kind} is called {self.name!r}; there are: {', '.join(self.known) or 'none'}"


class ListenError(PeiliError):
    """peili can't listen on an address."""
