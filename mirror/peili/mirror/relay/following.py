"""Remembers what was named by manifests that have just come from other hosts.

The host that had such a manifest first got it from upstream, and is about to fetch the rest from there, too.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Collection

from peili.mirror.oci.references import Digest
from peili.mirror.support.newest import put_newest

_MAX_DIGESTS = 16 * 1024
_VALID_TIME = 300.0
"""Seconds after which a manifest says nothing about what other hosts do."""
_MOST_IN_VAIN = 2
"""After so many manifests in a row for which nobody was ahead, this host follows nobody for `_VALID_TIME`."""


class FollowedContent:
    """For which content this host follows another one: its manifest came from there. Not thread-safe.

    To follow a host that fetches nothing costs up to two seconds. In a cluster whose runtimes keep manifests, but
    discard the layers, each pull would wait in vain. So after two such pulls, this host follows nobody for a while.

    Args:
        clock: Seconds that never go back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._manifests: OrderedDict[Digest, _Manifest] = OrderedDict()  # by what they name
        self._in_vain = 0  # manifests in a row
        self._paused_until = float("-inf")

    def add(self, named: Collection[Digest]) -> None:
        """Note that a manifest which names these digests has come from another host."""
        manifest = _Manifest(self._clock() + _VALID_TIME)
        for digest in named:
            put_newest(self._manifests, digest, manifest, _MAX_DIGESTS)

    def __contains__(self, digest: Digest) -> bool:
        manifest = self._manifests.get(digest)
        return manifest is not None and self._paused_until <= self._clock() < manifest.valid_until

    def give_up(self, digest: Digest) -> None:
        """Note that nobody was ahead: this host was sent upstream. This counts for all that the manifest names."""
        if digest not in self:
            return
        self._manifests[digest].valid_until = float("-inf")
        self._in_vain += 1
        if self._in_vain >= _MOST_IN_VAIN:
            self._in_vain, self._paused_until = 0, self._clock() + _VALID_TIME

    def confirm(self, digest: Digest) -> None:
        """Note that another host has, or fetches, what this host follows it for."""
        if digest in self:
            self._in_vain = 0


class _Manifest:
    def __init__(self, valid_until: float) -> None:
        self.valid_until = valid_until
