"""Every error that peili raises on purpose.

    PeiliError
      x NotFound             nobody has it, or it is not a thing we serve
      + Unavailable          asked, but the answer could not be had; may work later
        x StoreUnavailable
        x RouterUnavailable
        x PeerUnavailable
      x Aborted              content that was arriving will never be whole
      x ConfigError          an option is wrong; says which, and what would be right
      x PluginNotFound       no plug-in of that name; says which there are
      x ListenError          an address can't be listened on; says why

A malformed value (digest, reference, range) is a `ValueError` where it is made. Errors of gRPC and the operating
system are translated where they enter, with ``raise … from``.
"""

from __future__ import annotations

from collections.abc import Collection
from enum import StrEnum


class FailureReason(StrEnum):
    """Why a peer could not be used: `PeerUnavailable.reason`, and the values of `Want.failed`."""

    UNREACHABLE = "unreachable"
    """There was no connection, or it broke before the answer."""
    REFUSED = "refused"
    """The peer answered, but not with the content (404, 403, …)."""
    BUSY = "busy"
    """The peer has the content, but serves as many requests as it may."""
    SILENT = "silent"
    """The peer sent nothing for too long."""
    SLOW = "slow"
    """The peer sent less than the minimum rate."""
    BROKEN = "broken"
    """The transfer ended early."""
    WRONG = "wrong"
    """The peer sent something that is not the content."""


class PeiliError(Exception):
    """Base of all errors that peili raises on purpose."""


class NotFound(PeiliError):
    """What was asked for is not there."""


class Unavailable(PeiliError):
    """The answer could not be had now; asking again later may help."""


class StoreUnavailable(Unavailable):
    """The store's backend does not answer."""


class RouterUnavailable(Unavailable):
    """The router can't say who has what."""


class PeerUnavailable(Unavailable):
    """A peer could not be reached, did not answer in time, refused, or sent what it should not.

    `reason` is a `FailureReason`.
    """

    def __init__(self, message: str, reason: str = FailureReason.UNREACHABLE) -> None:
        self.reason = reason
        super().__init__(message)


class Aborted(PeiliError):
    """Content that was arriving will never be whole."""


class ConfigError(PeiliError):
    """An option is wrong. `key` is its dotted name, `expected` says what would be right.

    `source`, where known, is the file or the environment variable that it came from.
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
        """The same error, seen from outside: its key below `section`, its source filled in."""
        return ConfigError(f"{section}.{self.key}", self.expected, source=self.source or source)


class PluginNotFound(PeiliError):
    """No plug-in of that name. `known` are the names that there are."""

    def __init__(self, group: str, name: str, known: Collection[str]) -> None:
        self.group = group
        self.name = name
        self.known = tuple(sorted(known))
        super().__init__(group, name, self.known)

    def __str__(self) -> str:
        kind = self.group.removeprefix("peili.").removesuffix("s")
        return f"no {kind} is called {self.name!r}; there are: {', '.join(self.known) or 'none'}"


class ListenError(PeiliError):
    """An address can't be listened on."""
