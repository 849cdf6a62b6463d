"""`peili find` and `peili ping`: ask the running peili, and show its answer as text or JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from peili.adapters.standalone.operations import RunningPeili
from peili.adapters.standalone.tables import table
from peili.mirror.support.units import bytes_text, seconds_text

_TIMEOUT = 90.0
"""Seconds. The running peili answers earlier, with an error if need be."""
_MOST_NAMES = 4


def find(running: RunningPeili, image: str, write: Callable[[str], object], *, test: bool, as_json: bool) -> int:
    """Show who has which part of `image`, and with `test` whether each part arrives.

    Args:
        running: The running peili.
        image: The image, as people write it.
        write: Called with the text.
        test: Whether to fetch the first MiB of each part.
        as_json: Whether to write JSON.

    Returns:
        The exit code.

    Raises:
        PeiliError: No peili answers, or it refuses, or it has another version.
    """
    path = "/try" if test else "/find"
    document = running.fetch(path, {"image": image}, timeout=_TIMEOUT)
    with running.understanding(path):
        title = f"{document['image']}  {document['digest'] or 'of unknown digest'}"
        text = json.dumps(document, indent=2) if as_json else "\n".join([title, *_found(document)])
        failed = test and any(part["source"] != "upstream" and part["test"]["error"] for part in document["parts"])
        is_unknown = document["digest"] is None
    write(f"{text}\n")
    return 1 if is_unknown or failed else 0


def _found(document: Mapping[str, Any]) -> list[str]:
    rows = [
        (
            part["kind"],
            part["digest"].partition(":")[2][:12],
            "" if part["size"] is None else bytes_text(part["size"]),
            _where(part),
            _tested(part.get("test")),
        )
        for part in document["parts"]
    ]
    steps = [f"  {number}. {step}" for number, step in enumerate(document["steps"], 1)]
    return [*table(rows, right=(2,)), "what a pull would do", *steps]


def _where(part: Mapping[str, Any]) -> str:
    names = [each["name"] if each["complete"] else f"{each['name']} (arriving)" for each in part["holders"]]
    if len(names) > _MOST_NAMES:
        names[_MOST_NAMES:] = [f"{len(names) - _MOST_NAMES} more"]
    return ", ".join([*(["here"] if part["here"] else []), *names]) or "only upstream"


def _tested(test: Mapping[str, Any] | None) -> str:
    if test is None:
        return ""
    if test["error"] is not None:
        return f"FAILED: {test['error']}"
    return f"{bytes_text(test['bytes'])} from {test['from']} in {seconds_text(test['seconds'])}"


def ping(running: RunningPeili, peer: str | None, write: Callable[[str], object], *, as_json: bool) -> int:
    """Show how long each peer takes to answer.

    Args:
        running: The running peili.
        peer: The id or the URL of one peer; None for all.
        write: Called with the text.
        as_json: Whether to write JSON.

    Returns:
        The exit code.

    Raises:
        PeiliError: No peili answers, or it knows no such peer.
    """
    answers = running.fetch("/ping", {} if peer is None else {"peer": peer}, timeout=_TIMEOUT)
    with running.understanding("/ping"):
        rows = [(each["name"], each["urls"][0] if each["urls"] else "", _measured(each)) for each in answers[:]]
        lines = [json.dumps(answers, indent=2)] if as_json else [*table(rows)] if rows else ["no peer is known"]
        has_failed = any(each["error"] for each in answers)
    write("\n".join(lines) + "\n")
    return 1 if has_failed else 0


def _measured(answer: Mapping[str, Any]) -> str:
    if answer["error"] is not None:
        return f"FAILED: {answer['error']}"
    times = answer["seconds"]
    return f"{seconds_text(min(times))} (the slowest of {len(times)}: {seconds_text(max(times))})"
