"""The output of ``talosctl get members -o json`` of Talos 1.13, for any members."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any


def member(node: str, *addresses: str, **changes: Any) -> dict[str, Any]:
    """Return the resource of one member. `changes` replace fields of its ``spec``."""
    spec: dict[str, Any] = {
        "addresses": list(addresses),
        "hostname": f"talos-{node}",
        "machineType": "worker",
        "nodeId": node,
        "operatingSystem": "Talos (v1.13.0)",
    }
    return {
        "metadata": {
            "created": "2026-11-25T03:38:16Z",
            "id": f"talos-{node}",
            "namespace": "cluster",
            "owner": "cluster.MemberController",
            "phase": "running",
            "type": "Members.cluster.talos.dev",
            "updated": "2026-11-25T03:38:16Z",
            "version": "2",
        },
        "node": "172.20.0.2",
        "spec": {**spec, **changes},
    }


def printed(members: Sequence[Any]) -> str:
    """Return one object after another, as talosctl prints them."""
    return "".join(json.dumps(each, indent=4) + "\n" for each in members)
