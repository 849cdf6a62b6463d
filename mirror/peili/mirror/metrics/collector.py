"""Several mirrors in one metrics registry."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from peili.mirror.metrics.counters import nothing
from peili.mirror.mirror import Mirror

if TYPE_CHECKING:
    from prometheus_client import Metric


class Collector:
    """A collector of prometheus_client's for several mirrors: ``registry.register(Collector({"blue": one, …}))``.

    Each sample has the mirror's name in its label ``mirror``. `mirrors` is looked at each time, so they may come and
    go. (Registered each by itself, the second is refused by the registry: it would repeat the names of the first.)
    """

    def __init__(self, mirrors: Mapping[str, Mirror]) -> None:
        self._mirrors = mirrors

    def collect(self) -> Iterable[Metric]:
        """The metrics of all. May be called from any thread. Raises ImportError without prometheus_client."""
        from peili.mirror.metrics import prometheus  # noqa: PLC0415 - needs prometheus_client, which is the host's

        return prometheus.merged({name: mirror.figures() for name, mirror in dict(self._mirrors).items()})

    def describe(self) -> Iterable[Metric]:
        """From it a registry has the names."""
        from peili.mirror.metrics import prometheus  # noqa: PLC0415 - as above

        return prometheus.merged({"": nothing()})
