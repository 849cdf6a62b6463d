"""Whether Kubernetes' pulls read hosts.toml at all: in the default configuration of newer containerds they do not."""

from __future__ import annotations

from pathlib import Path

from peili.adapters.containerd.doctor import daemon
from peili.adapters.containerd.doctor.configuration import DEFAULT_FILE, Configuration, Unreadable, read
from peili.adapters.containerd.doctor.configured import transfer_service
from peili.adapters.containerd.doctor.findings import Level
from peili.adapters.containerd.doctor.registries import registries
from peili.adapters.containerd.version import ContainerdVersion


def unread(version: str | None, socket: Path) -> str | None:
    """Why pulls of Kubernetes read no hosts.toml, and how to fix it, in one line; None where that is not known.

    `version` is that of the containerd which is meant, at `socket` if it runs. Reads its configuration. Blocks.
    """
    try:
        meant = ContainerdVersion.parse(version or "")
    except ValueError:
        return None
    begun = daemon.started(socket)
    file = (begun.config if begun is not None else None) or DEFAULT_FILE
    base = begun.working_directory if begun is not None else Path("/")
    try:
        configuration = read(file, meant, base) if file.exists() else Configuration()
    except (Unreadable, OSError):
        return None
    for finding in transfer_service(registries(configuration, meant)):
        if finding.level is Level.FAIL:
            what = f"containerd {version} reads none of this for Kubernetes"
            return f"{what}: its transfer service gets several folders, and takes them for one; {finding.mend}"
    return None
