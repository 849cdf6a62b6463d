"""Spans for OpenTelemetry, if the program has set up an SDK; otherwise nothing.

peili imports no package for it: a program with an SDK has imported ``opentelemetry-api`` already. Each request to a
door is then a span. It belongs to the trace of the client, if that sends one, and requests to peers carry it on. So a
pull is one trace, over all hosts that take part.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Generator, MutableMapping
from contextlib import contextmanager
from typing import Any

from starlette.types import Scope

from peili.mirror.metrics.requests import RequestRecord

_NAME = "peili"


class Spans:
    """Makes spans. May be used concurrently."""

    @property
    def are_on(self) -> bool:
        """Whether the program has set up an SDK."""
        trace = _api()
        return trace is not None and not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)

    @contextmanager
    def request(self, scope: Scope, record: RequestRecord) -> Generator[None]:
        """Make a span for a request to a door. Only if `are_on`. `record` is read when the request has ended."""
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        trace, parent = _api(), _propagation().extract(headers)
        tracer = trace.get_tracer(_NAME)
        name, kind = f"peili {record.door} {scope['method']}", trace.SpanKind.SERVER
        with tracer.start_as_current_span(name, context=parent, kind=kind) as span:
            try:
                yield
            finally:
                if span.is_recording():
                    span.update_name(f"{name} {record.endpoint}")
                    span.set_attributes(_attributes(scope, record))

    def inject(self, headers: MutableMapping[str, str]) -> None:
        """Add the current span, if there is one, to the headers of a request to a peer."""
        if self.are_on:
            _propagation().inject(headers)


def _api() -> Any:
    """Return the module of the API; None if the program has not imported it."""
    return sys.modules.get("opentelemetry.trace")


def _propagation() -> Any:
    return importlib.import_module("opentelemetry.propagate")


def _attributes(scope: Scope, record: RequestRecord) -> dict[str, Any]:
    found: dict[str, Any] = {
        "http.request.method": scope["method"],
        "http.response.status_code": record.status,
        "peili.door": record.door,
        "peili.endpoint": record.endpoint,
        "peili.answer": record.answer,
        "peili.repository": record.repository,
        "peili.digest": record.digest,
        "peili.source": record.source,
        "peili.bytes": record.sent,
        "peili.senders": list(record.senders),
    }
    return {name: value for name, value in found.items() if value is not None and value != ""}
