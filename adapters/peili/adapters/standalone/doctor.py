"""`peili doctor`: runs the doctor of `peili.adapters.containerd` for the command's configuration."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from peili.adapters.containerd.doctor.diagnosis import DoctorTarget, diagnose
from peili.adapters.containerd.doctor.result import CheckResult, Level, summary
from peili.adapters.standalone.config import Config
from peili.adapters.standalone.hosts import mirror_url
from peili.adapters.standalone.operations import RunningPeili, door_tls
from peili.adapters.standalone.streams import printable
from peili.mirror import Selection
from peili.stores.containerd.options import ContainerdOptions


def doctor_target(config: Config, containerd_config: Path | None) -> DoctorTarget:
    """Return what the doctor examines: the containerd and the mirror that `config` describes.

    Args:
        config: The configuration of `peili serve`.
        containerd_config: containerd's configuration file; None for the file that the running containerd uses.

    Raises:
        ConfigError: The store's options are wrong, or the local door has no fixed port.
    """
    kind = config.store.kind
    if kind == "containerd":
        options = config.store.build(lambda _, options: ContainerdOptions.from_config(options))
    else:
        options = ContainerdOptions.from_config({})
    peer_tls = config.peer.build_tls("doctor")
    return DoctorTarget(
        mirror=mirror_url(config.local.listen, has_tls=config.local.cert is not None),
        address=options.socket,
        namespaces=options.namespaces,
        selection=Selection(config.mirror.registries, config.mirror.exclude),
        rights=config.mirror.rights,
        content_path=options.content_path,
        hosts_directories=tuple(
            Path(folder) for each in config.hosts.config_path for folder in each.split(":") if folder
        ),
        config=containerd_config.absolute() if containerd_config is not None else None,
        is_peer_door_closed=peer_tls is None and not config.peer.insecure,
        peer_tls=peer_tls,
        store_kind=kind,
        resolver_kind=config.resolver.kind,
        ops=RunningPeili.of(config).url if config.ops else None,
        door_tls=door_tls(config),
    )


def run(target: DoctorTarget, write: Callable[[str], object], *, as_json: bool) -> int:
    """Write a diagnosis, as lines or as one JSON object.

    Args:
        target: What the doctor examines.
        write: Called with each line as soon as its check is done, or with the whole JSON object.
        as_json: Whether to write JSON.

    Returns:
        The exit code: 1 if a check failed, else 0.
    """
    return asyncio.run(_run(target, write, as_json=as_json))


async def _run(target: DoctorTarget, write: Callable[[str], object], *, as_json: bool) -> int:
    results: list[CheckResult] = []
    async for result in diagnose(target):
        results.append(result)
        if not as_json:
            write(f"{replace(result, what=printable(result.what), fix=printable(result.fix))}\n")
    healthy = all(each.level is not Level.FAIL for each in results)
    if as_json:
        write(json.dumps({"healthy": healthy, "findings": [each.json() for each in results]}, indent=2) + "\n")
    else:
        write(f"{summary(results)}\n")
    return 0 if healthy else 1
