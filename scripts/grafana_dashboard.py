"""Writes packaging/grafana/dashboard.json from the list of panels below: `python -m scripts.grafana_dashboard`.

A test compares the file with what this writes, and runs each query on a real Prometheus.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from scripts.generated import ROOT, write_or_check

FILE = ROOT / "packaging" / "grafana" / "dashboard.json"
SELECTED = 'instance=~"$instance"'


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel. `queries` are pairs of an expression and the legend of its series."""

    title: str
    queries: Sequence[tuple[str, str]]
    unit: str
    kind: str = "timeseries"
    stacked: bool = False
    width: int = 12


def rate(name: str, by: str, labels: str = "") -> str:
    return f"sum by ({by}) (rate({name}{{{SELECTED}{labels}}}[$__rate_interval]))"


def total(name: str, labels: str = "") -> str:
    return f"sum(increase({name}{{{SELECTED}{labels}}}[$__range]))"


def quantile(share: float, name: str, by: str) -> str:
    return f"histogram_quantile({share}, {rate(f'{name}_bucket', f'le, {by}')})"


LOCAL = ', door="local"'
HERE, UPSTREAM = total("peili_sent_bytes_total", LOCAL), total("peili_upstream_bytes_total")
PANELS = (
    Panel(
        "Share of bytes saved",
        [
            (
                f"{HERE} / ({HERE} + {UPSTREAM})",
                "saved",
            )
        ],
        "percentunit",
        "stat",
        width=6,
    ),
    Panel(
        "From peers",
        [(total("peili_sent_bytes_total", ', door="local", source="peer"'), "bytes")],
        "bytes",
        "stat",
        width=6,
    ),
    Panel("From upstream", [(total("peili_upstream_bytes_total"), "bytes")], "bytes", "stat", width=6),
    Panel("Images pulled", [(total("peili_pulls_total"), "images")], "short", "stat", width=6),
    Panel(
        "What runtimes receive, by source",
        [
            (rate("peili_sent_bytes_total", "source", LOCAL), "{{source}}"),
            (f"sum(rate(peili_upstream_bytes_total{{{SELECTED}}}[$__rate_interval]))", "upstream"),
        ],
        "Bps",
        stacked=True,
    ),
    Panel("Sent to peers", [(rate("peili_sent_bytes_total", "instance", ', door="peer"'), "{{instance}}")], "Bps"),
    Panel(
        "Requests by answer",
        [(rate("peili_request_duration_seconds_count", "door, answer"), "{{door}} {{answer}}")],
        "reqps",
        stacked=True,
    ),
    Panel(
        "Duration of requests of the runtime, 95th percentile",
        [(quantile(0.95, "peili_request_duration_seconds", "endpoint, answer"), "{{endpoint}} {{answer}}")],
        "s",
    ),
    Panel(
        "Duration of lookups",
        [
            (quantile(0.5, "peili_lookup_seconds", "instance"), "{{instance}} median"),
            (quantile(0.99, "peili_lookup_seconds", "instance"), "{{instance}} p99"),
        ],
        "s",
    ),
    Panel(
        "Lookups by answer of the router", [(rate("peili_lookups_total", "result"), "{{result}}")], "ops", stacked=True
    ),
    Panel(
        "Questions to registries by answer",
        [(rate("peili_upstream_requests_total", "answer"), "{{answer}}")],
        "reqps",
        stacked=True,
    ),
    Panel("Peers that answer", [(f"peili_peers{{{SELECTED}}}", "{{instance}}")], "short"),
    Panel("Who may pull: decisions", [(rate("peili_rights_total", "decision"), "{{decision}}")], "ops", stacked=True),
    Panel("Cold start: what homes answer", [(rate("peili_grants_total", "answer"), "{{answer}}")], "ops", stacked=True),
    Panel(
        "Cold start: content that is passed on while it arrives",
        [(f"sum by (instance) (peili_uploads_in_flight{{{SELECTED}}})", "{{instance}}")],
        "short",
        stacked=True,
    ),
    Panel(
        "Transfers and uploads in progress",
        [(f"sum(peili_transfers{{{SELECTED}}})", "transfers"), (f"sum(peili_uploads{{{SELECTED}}})", "uploads")],
        "short",
    ),
    Panel(
        "Peers that could not be used, by reason",
        [(rate("peili_peer_failures_total", "reason"), "{{reason}}")],
        "ops",
        stacked=True,
    ),
    Panel("Limits that took effect", [(f"{rate('peili_limited_total', 'limit')} > 0", "{{limit}}")], "ops"),
    Panel(
        "Cut responses and quarantines",
        [
            (rate("peili_cut_answers_total", "door"), "cut at the {{door}} door"),
            (f"sum(rate(peili_quarantines_total{{{SELECTED}}}[$__rate_interval]))", "quarantines"),
        ],
        "ops",
    ),
    Panel(
        "Memory",
        [(f"process_resident_memory_bytes{{{SELECTED}}} and on (instance) peili_build_info", "{{instance}}")],
        "bytes",
    ),
    Panel(
        "CPU",
        [
            (
                f"rate(process_cpu_seconds_total{{{SELECTED}}}[$__rate_interval]) and on (instance) peili_build_info",
                "{{instance}}",
            )
        ],
        "percentunit",
    ),
    Panel(
        "Parts that are ready",
        [(f"min by (instance, part) (peili_ready{{{SELECTED}}})", "{{instance}} {{part}}")],
        "bool",
    ),
)


def text() -> str:
    """Return the text of the file."""
    return json.dumps(dashboard(), indent=2) + "\n"


def dashboard() -> dict[str, Any]:
    """Return the dashboard in Grafana's format."""
    panels: list[dict[str, Any]] = []
    x = y = 0
    for number, panel in enumerate(PANELS, 1):
        height = 4 if panel.kind == "stat" else 8
        if x + panel.width > 24:
            x, y = 0, y + (4 if panels[-1]["type"] == "stat" else 8)
        panels.append(_panel(number, panel, {"x": x, "y": y, "w": panel.width, "h": height}))
        x += panel.width
    return {
        "title": "peili",
        "uid": "peili",
        "tags": ["peili"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-24h", "to": "now"},
        "templating": {"list": [_source_variable(), _instance_variable()]},
        "panels": panels,
    }


def _panel(number: int, panel: Panel, position: dict[str, int]) -> dict[str, Any]:
    source = {"type": "prometheus", "uid": "${source}"}
    custom = {"stacking": {"mode": "normal"}, "fillOpacity": 30} if panel.stacked else {}
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "datasource": source,
        "gridPos": position,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0, "custom": custom}, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + index), "expr": expression, "legendFormat": legend, "datasource": source}
            for index, (expression, legend) in enumerate(panel.queries)
        ],
    }


def _source_variable() -> dict[str, Any]:
    return {"name": "source", "label": "Data source", "type": "datasource", "query": "prometheus"}


def _instance_variable() -> dict[str, Any]:
    return {
        "name": "instance",
        "label": "Host",
        "type": "query",
        "datasource": {"type": "prometheus", "uid": "${source}"},
        "query": "label_values(peili_build_info, instance)",
        "includeAll": True,
        "allValue": ".*",
        "multi": True,
        "current": {"text": "All", "value": "$__all"},
        "refresh": 2,
    }


if __name__ == "__main__":
    sys.exit(write_or_check(FILE, text, __doc__))
