"""Podman, Buildah and skopeo, as docs/clients.md sets them up. CRI-O reads the same configuration by their library."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from tests.lab.authentication import Credentials
from tests.lab.network import Node
from tests.lab.processes import run

REGISTRY = "registry.test"
"""What a registry is called in references. A name with a port can't stand in the path of another reference."""
PULLERS = ("podman", "buildah", "skopeo")


class Puller:
    """Podman, Buildah or skopeo on a node, with its own storage. It knows one registry.

    Args:
        name: One of `PULLERS`.
        node: The node.
        directory: A new directory with a short path, which Podman needs.
        registry: The `host:port` of the registry, which speaks plain HTTP.
        mirror: The `host:port` of the local door of a peili that is asked first; None for no mirror.
        known_as: What the registry is called in references, a name without a port.
    """

    def __init__(
        self, name: str, node: Node, directory: Path, registry: str, mirror: str | None, *, known_as: str = REGISTRY
    ) -> None:
        self._name = name
        self._node = node
        self._directory = directory
        self._hosts = [registry, *([] if mirror is None else [mirror])]
        lines = ["[[registry]]", f'prefix = "{known_as}"', f'location = "{registry}"', "insecure = true"]
        if mirror is not None:
            lines += ["[[registry.mirror]]", f'location = "{mirror}/{known_as}"', "insecure = true"]
        registries = directory / ".config/containers/registries.conf"
        registries.parent.mkdir(parents=True)
        registries.write_text("\n".join(lines) + "\n")

    def pull(self, reference: str, credentials: Credentials | None = None) -> None:
        """Pull an image, with or without credentials for every host that is asked. Raises CommandFailed."""
        secrets = self._directory / "auth.json"
        encoded = base64.b64encode(str(credentials or "").encode()).decode()
        secrets.write_text(json.dumps({"auths": {each: {"auth": encoded} for each in self._hosts if credentials}}))
        environment = [f"HOME={self._directory}", f"REGISTRY_AUTH_FILE={secrets}"]
        run(self._node.command(["env", *environment, *self._command(reference)]))

    def reset(self) -> None:
        """Forget every image that was pulled."""
        for each in (self._storage, self._copy):
            shutil.rmtree(each, ignore_errors=True)

    @property
    def _storage(self) -> Path:
        return self._directory / "root"

    @property
    def _copy(self) -> Path:
        return self._directory / "copy"

    def _command(self, reference: str) -> Sequence[str]:
        storage = [f"--root={self._storage}", f"--runroot={self._directory}/run", "--storage-driver=vfs"]
        match self._name:
            case "podman":
                return ["podman", *storage, "--cgroup-manager=cgroupfs", "pull", "--quiet", reference]
            case "buildah":
                return ["buildah", *storage, "pull", "--quiet", reference]
            case _:
                target = f"dir:{self._copy}"
                return ["skopeo", "--insecure-policy", "copy", "--quiet", f"docker://{reference}", target]
