"""A collector for prometheus_client with the metrics of several mirrors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from peili.mirror.metrics.counters import empty_families
from peili.mirror.mirror import Mirror

if TYPE_CHECKING:
    from prometheus_client import Metric


class Collector:
    """A collector for prometheus_client with the metrics of several mirrors.

    Use it as ``registry.register(Collector({"blue": one, "green": other}))``. Each sample has the name of its mirror in
    the label ``mirror``. Without a `Collector`, a registry refuses a second mirror, because its metrics have the same
    names.

    Args:
        mirrors: The mirrors by name. The mapping is read at each collection, so mirrors may be added and removed.
    """

    def __init__(self, mirrors: Mapping[str, Mirror]) -> None:
        self._mirrors = mirrors

    def collect(self) -> Iterable[Metric]:
        """Return the metrics of all mirrors. May be called from any thread.

        Raises:
            ImportError: prometheus_client is not installed (the extra ``command``).
        """
        from peili.mirror.metrics import prometheus  # noqa: PLC0415 - needs prometheus_client, which is optional

        return prometheus.merged_metrics({name: mirror.figures() for name, mirror in dict(self._mirrors).items()})

    def describe(self) -> Iterable[Metric]:
        """Return all metrics without values."""
        from peili.mirror.metrics import prometheus  # noqa: PLC0415 - as above

        return prometheus.merged_metrics({"": empty_families()})
