"""A mirror's figures as prometheus_client takes them. Imported once somebody collects: the package is the host's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from peili.mirror.metrics.counters import Distribution, Family, Labels

try:
    from prometheus_client import CollectorRegistry, Metric
    from prometheus_client.exposition import choose_encoder
    from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
except ImportError as error:
    raise ImportError("metrics need prometheus-client: pip install 'peili[command]'") from error


def metrics(families: Iterable[Family]) -> list[Metric]:
    """One mirror's."""
    return [_metric(each, each.labels, each.samples) for each in families]


def merged(families: Mapping[str, Iterable[Family]]) -> list[Metric]:
    """Those of several mirrors by name, which each sample shows in its label ``mirror``."""
    merged: dict[str, tuple[Family, dict[Labels, float | Distribution]]] = {}
    for name, each in families.items():
        for family in each:
            _, samples = merged.setdefault(family.name, (family, {}))
            samples.update({(name, *labels): value for labels, value in family.samples.items()})
    return [_metric(family, ("mirror", *family.labels), samples) for family, samples in merged.values()]


def page(families: Iterable[Family], accept: str) -> tuple[bytes, str]:
    """The text of one mirror's metrics, and its media type, for whoever takes `accept`."""
    registry = CollectorRegistry()
    registry.register(_Collected(metrics(families)))
    encode, media_type = choose_encoder(accept)
    return encode(registry), media_type


class _Collected:
    """Metrics that are in hand already."""

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
            metric.add_metric(labels, [(_bound(bound), count) for bound, count in buckets], total)
        case ((CounterMetricFamily() | GaugeMetricFamily()), float() | int()):
            metric.add_metric(labels, value)
        case _:
            raise TypeError(f"{metric.type} has no {value!r}")


def _bound(bound: float) -> str:
    return "+Inf" if bound == float("inf") else str(bound)
