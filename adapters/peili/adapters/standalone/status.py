"""`peili status`: shows the document of ``/status`` of the running peili as text, once or live."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from typing import Any

from peili.adapters.standalone.operations import RunningPeili
from peili.adapters.standalone.tables import table
from peili.mirror import PeiliError
from peili.mirror.support.units import bytes_text, seconds_text, share_text

_PATH = "/status"
INTERVAL = 1.0
"""Seconds between two pictures of --watch."""
_MOST_PULLS = 5
_MOST_PROBLEMS = 5


def run(running: RunningPeili, write: Callable[[str], object], *, as_json: bool, watch: bool) -> int:
    """Show the status.

    Args:
        running: The running peili.
        write: Called with the text.
        as_json: Write the document as JSON; with `watch`, one line each second.
        watch: Repeat until SIGINT.

    Returns:
        The exit code.

    Raises:
        PeiliError: No peili answers; or `watch` needs rich, which is missing.
    """
    if watch and not as_json:
        _watch(running)
    while True:
        write(_as_json(running, indent=None if watch else 2) if as_json else _picture(running))
        if not watch:
            return 0
        time.sleep(INTERVAL)


def _watch(running: RunningPeili) -> None:
    """Show the status on the whole terminal until SIGINT. While peili does not answer, say so."""
    try:
        from rich.live import Live  # noqa: PLC0415 - only for this
        from rich.text import Text  # noqa: PLC0415
    except ImportError as error:
        raise PeiliError("`peili status --watch` needs pip install 'peili[command]'") from error
    with Live(Text(_picture(running)), screen=True, auto_refresh=False) as live:
        while True:
            time.sleep(INTERVAL)
            try:
                text = _picture(running)
            except PeiliError as error:
                text = str(error)
            live.update(Text(text), refresh=True)


def _as_json(running: RunningPeili, *, indent: int | None) -> str:
    """Return the present status as a line or lines of JSON. Raises PeiliError."""
    document = running.fetch(_PATH)
    with running.understanding(_PATH):
        _ = document["identity"]  # else another program answers
    return json.dumps(document, indent=indent) + "\n"


def _picture(running: RunningPeili) -> str:
    """Return the present status as text. Raises PeiliError."""
    document = running.fetch(_PATH)
    with running.understanding(_PATH):
        return render(document)


def render(document: Mapping[str, Any]) -> str:
    """Return the status as text, which ends with a line break."""
    sections = (
        _host(document),
        _received(document),
        _peers(document),
        _transfers(document),
        _pulls(document),
        _problems(document),
    )
    return "\n\n".join("\n".join(each) for each in sections if each) + "\n"


def _host(document: Mapping[str, Any]) -> list[str]:
    up = seconds_text(max(0.0, document["now"] - document["started"]))
    lines = [f"{document['identity']}  peili {document['version']}, up {up}"]
    notes = {"store": f"; shared with peers: {document['advertised']} keys", "router": f"; {_peer_count(document)}"}
    if asked := document.get("upstream_requests"):  # an older peili does not count them
        notes["resolver"] = f"; requests to registries: {asked:.0f}"
    for part, kind in document["plugins"].items():
        state = "ready" if document["ready"].get(part) else "NOT READY"
        lines.append(f"  {part:10}{kind}, {state}{notes.get(part, '')}")
    lines.append(f"  {'urls':10}{', '.join(document['urls']) or 'no URL: there is no peer door'}")
    clients = [
        f"{name} ({_times(counts['requests'])}, last {_ago(document, counts['last'])})"
        for name, counts in document["runtime"].items()
    ]
    return [*lines, f"  {'asked by':10}{', '.join(clients) or 'nobody so far'}"]


def _peer_count(document: Mapping[str, Any]) -> str:
    dead = len(document["unreachable"])
    silent = "" if not dead else f", of which {dead} {'does' if dead == 1 else 'do'} not answer"
    return f"peers: {document['peers_known'] + dead}{silent}"


def _received(document: Mapping[str, Any]) -> list[str]:
    today, total = document["received_today"], document["received"]
    rows = [("", "today", "since the start")]
    names = {"peers": "from peers", "store": "from the store", "upstream": "from upstream", "served": "sent to peers"}
    rows += [(name, bytes_text(today[key]), bytes_text(total[key])) for key, name in names.items()]
    rows.insert(4, ("saved", share_text(today["saved"]), share_text(total["saved"])))
    return ["what the runtime received", *table(rows, right=(1, 2))]


def _peers(document: Mapping[str, Any]) -> list[str]:
    rows = [
        (
            peer["name"],
            peer["urls"][0] if peer["urls"] else "",
            "not seen yet" if peer.get("last_seen") is None else f"seen {_ago(document, peer['last_seen'])}",
            "" if peer.get("round_trip") is None else seconds_text(peer["round_trip"]),
        )
        for peer in document["peers"]
    ]
    for peer in document["unreachable"]:
        seen = "never seen" if peer["last_seen"] is None else f"last seen {_ago(document, peer['last_seen'])}"
        state = f"DOES NOT ANSWER, {seen}: {peer['reason']}"
        rows.append((peer["name"], peer["urls"][0] if peer["urls"] else "", state, ""))
    if not rows:
        return ["peers: none is known"]
    more = document["peers_known"] - len(document["peers"])
    return ["peers", *table(rows), *([f"  … and {more} more"] if more > 0 else [])]


def _transfers(document: Mapping[str, Any]) -> list[str]:
    rows: list[tuple[str, ...]] = []
    for each in document["transfers"]:
        rate = f"{bytes_text(each['sent'] / each['seconds'])}/s" if each["seconds"] > 0 else ""
        of = f"{bytes_text(each['sent'])} of {bytes_text(each['size'])}" if each["size"] else bytes_text(each["sent"])
        if each["to"] is not None:
            who = f"to {each['to']}"
        else:
            who = f"from {each['from']}" if each["from"] else "from the store" if each["source"] == "store" else "asks"
        rows.append((each["repository"], _short(each["digest"]), of, rate, who))
    return ["in flight", *table(rows, right=(2, 3))] if rows else []


def _pulls(document: Mapping[str, Any]) -> list[str]:
    pulls = [*document["pulls"], *document["recent_pulls"]][:_MOST_PULLS]
    rows = [
        (
            each["image"],
            "in progress" if each["ended"] is None else _ago(document, each["ended"]),
            seconds_text(each["seconds"]),
            f"{bytes_text(each['bytes_from_peers'])} from peers",
            f"{bytes_text(each['bytes_from_upstream'])} from upstream",
            f"saved {share_text(each['saved'])}",
        )
        for each in pulls
    ]
    return ["last pulls", *table(rows)] if rows else []


def _problems(document: Mapping[str, Any]) -> list[str]:
    problems = document["problems"][-_MOST_PROBLEMS:]
    rows = [(_ago(document, each["time"]), each["level"], each["message"]) for each in problems]
    return ["last problems", *table(rows)] if rows else []


def _ago(document: Mapping[str, Any], when: float) -> str:
    return f"{seconds_text(max(0.0, document['now'] - when))} ago"


def _times(count: float) -> str:
    return "once" if count == 1 else f"{count:.0f} times"


def _short(digest: str | None) -> str:
    return "" if digest is None else digest.partition(":")[2][:12]
