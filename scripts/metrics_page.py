"""Writes docs/metrics.md: every metric with its type, its labels and what it measures. A test compares."""

from __future__ import annotations

import sys

from scripts.generated import ROOT, write_or_check

from peili.mirror.metrics.counters import empty_families

FILE = ROOT / "docs" / "metrics.md"
_INTRODUCTION = """\
# Metrics

`/metrics` at the address for operators ([running.md](running.md#the-address-for-operators)) has these metrics in the
formats of Prometheus, and those of the process (`process_…`). A host agent registers the mirror in its own registry
instead: [embedding.md](embedding.md). Counters start at zero with the process.

```yaml
scrape_configs:
  - job_name: peili
    static_configs: [{ targets: ["10.0.0.2:5052", "10.0.0.3:5052"] }]    # ops.listen of each host
```

[dashboard.json](../packaging/grafana/dashboard.json) is a dashboard for Grafana, and
[alerts.yaml](../packaging/grafana/alerts.yaml) has alert rules for Prometheus.

The share of bytes that did not come from upstream, over a day:

```
sum(increase(peili_sent_bytes_total{door="local"}[1d]))
  / (sum(increase(peili_sent_bytes_total{door="local"}[1d])) + sum(increase(peili_upstream_bytes_total[1d])))
```

## All metrics

| metric | type | labels | what it measures |
|---|---|---|---|
"""

_TRACES = """
## Traces

If the program has set up an SDK of OpenTelemetry, for example with `opentelemetry-instrument peili serve`, each request
to a door is a span: with the answer, the repository, the digest, the bytes and the peers that sent them. Requests to
peers carry the trace on, so a pull is one trace over all hosts that take part. Otherwise nothing is done.
"""


def page() -> str:
    """Return the text of the page."""
    rows = [
        f"| `{each.name}` | {each.kind} | {', '.join(f'`{label}`' for label in each.labels)} | {each.help} |\n"
        for each in sorted(empty_families(), key=lambda family: family.name)
    ]
    return _INTRODUCTION + "".join(rows) + _TRACES


if __name__ == "__main__":
    sys.exit(write_or_check(FILE, page, __doc__))
