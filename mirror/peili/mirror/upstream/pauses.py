"""Remembers from which requesters a registry wants no question for a while (429 or 503 with Retry-After)."""

from __future__ import annotations

from dataclasses import replace

from peili.mirror.support.expiring import Expiring
from peili.mirror.support.fingerprints import Fingerprints
from peili.mirror.upstream.answers import Unreachable

_MOST_REQUESTERS = 1024
_LONGEST = 60.0
"""The longest pause in seconds."""
_EVERYBODY = b"everybody"


class Pauses:
    """The pauses of one registry. Used on one event loop.

    A registry that limits one requester may answer others. It limits everybody only if it also says so to a request
    without rights for the root of its API.
    """

    def __init__(self) -> None:
        self._fingerprints = Fingerprints()
        self._requesters: Expiring[bytes, Unreachable] = Expiring(_MOST_REQUESTERS)
        self._everybody: Expiring[bytes, Unreachable] = Expiring(1)

    def of(self, authorization: str | None, *, is_root: bool) -> Unreachable | None:
        """Return what the registry said to a requester that has to wait; None if it may be asked.

        Args:
            authorization: The Authorization header of the requester.
            is_root: Whether the question is for the root of the API.
        """
        table, key = self._everybody, _EVERYBODY
        if not is_root and key not in table:
            table, key = self._requesters, self._fingerprints.of(authorization)
        answer = table.get(key)
        return None if answer is None else replace(answer, retry_after=table.remaining(key))

    def note(self, authorization: str | None, answer: Unreachable, *, is_root: bool) -> None:
        """Note an answer. If it says how long to wait, this requester waits, but for no longer than a minute."""
        if answer.retry_after is None:
            return
        seconds = min(answer.retry_after, _LONGEST)
        if is_root:
            self._everybody.set(_EVERYBODY, answer, seconds)
        else:
            self._requesters.set(self._fingerprints.of(authorization), answer, seconds)
