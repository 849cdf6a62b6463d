"""Converts metrics for prometheus_client. That is an optional dependency: import this module only when collecting."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from peili.mirror.metrics.families import Distribution, Family, Labels

try:
    from prometheus_client import CollectorRegistry, Metric, ProcessCollector
    from prometheus_client.exposition import choose_encoder
    from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
except ImportError as error:
    raise ImportError("metrics need prometheus-client: pip install 'peili[command]'") from error


def metrics(families: Iterable[Family]) -> list[Metric]:
    """Convert the metrics of one mirror."""
    return [_metric(each, each.labels, each.samples) for each in families]


def merged_metrics(families: Mapping[str, Iterable[Family]]) -> list[Metric]:
    """Convert the metrics of several mirrors. Each sample has the name of its mirror in the label ``mirror``."""
    merged: dict[str, tuple[Family, dict[Labels, float | Distribution]]] = {}
    for name, each in families.items():
        for family in each:
            _, samples = merged.setdefault(family.name, (family, {}))
            samples.update({(name, *labels): value for labels, value in family.samples.items()})
    return [_metric(family, ("mirror", *family.labels), samples) for family, samples in merged.values()]


def page(families: Iterable[Family], accept: str) -> tuple[bytes, str]:
    """Return the body of ``/metrics``, and its media type. It has the metrics of this process (``process_…``) as well.

    Args:
        families: The metrics.
        accept: The Accept header of the request, which decides the format.
    """
    registry = CollectorRegistry()
    registry.register(_FixedCollector(metrics(families)))
    ProcessCollector(registry=registry)  # here and not in a collector: a host agent's registry has its own
    encode, media_type = choose_encoder(accept)
    return encode(registry), media_type


class _FixedCollector:
    """A collector that returns the same metrics at each collection."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics


def _metric(family: Family, labels: Labels, samples: Mapping[Labels, float | Distribution]) -> Metric:
    match family.kind:
        case "counter":
            metric: Metric = CounterMetricFamily(family.name, family.help, labels=labels)
        case "gauge":
            metric = GaugeMetricFamily(family.name, family.help, labels=labels)
        case "histogram":
            metric = HistogramMetricFamily(family.name, family.help, labels=labels)
    for values, value in samples.items():
        _add(metric, values, value)
    return metric


def _add(metric: Metric, labels: Labels, value: float | Distribution) -> None:
    match metric, value:
        case HistogramMetricFamily(), Distribution(buckets, total):
            bounds = [("+Inf" if bound == math.inf else str(bound), count) for bound, count in buckets]
            metric.add_metric(labels, bounds, total)
        case ((CounterMetricFamily() | GaugeMetricFamily()), float() | int()):
            metric.add_metric(labels, value)
        case _:
            raise TypeError(f"{metric.type} has no {value!r}")
