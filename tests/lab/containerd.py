"""The containerd of one host, with its own root, state and socket. ctr is its client."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from functools import cache, partial
from pathlib import Path

from tests.containerd_releases import Release
from tests.lab import cri
from tests.lab.authentication import Credentials
from tests.lab.network import Node
from tests.lab.processes import CommandFailed, Process, run, wait_for
from tests.lab.releases import release as chosen_release

from peili.mirror import Descriptor

_LOG, _PULL_LOG = "containerd.log", "pull.log"
_LAYERS_AT_ONCE = 3
"""How many layers the CRI plug-in and the transfer service fetch at the same time by default."""

NAMESPACE, KUBERNETES = "default", "k8s.io"

# Plug-ins that need special file systems or that write to /opt and /run/nri.
_DISABLED = [
    "io.containerd.internal.v1.opt",
    "io.containerd.internal.v1.restart",
    "io.containerd.internal.v1.tracing",
    "io.containerd.nri.v1.nri",
    "io.containerd.tracing.processor.v1.otlp",
    *(f"io.containerd.snapshotter.v1.{name}" for name in ("aufs", "blockfile", "btrfs", "devmapper", "zfs")),
]
# Plug-ins that only pods need. Without them, containerd does not need root.
_FOR_PODS = [
    "io.containerd.grpc.v1.cri",
    "io.containerd.cri.v1.images",
    "io.containerd.cri.v1.runtime",
]
_OVERLAYFS = "io.containerd.snapshotter.v1.overlayfs"

_CONFIGURATION = """\
version = 2
root = "{directory}/root"
state = "{directory}/state"
disabled_plugins = {disabled}
[grpc]
  address = "{socket}"
  uid = {uid}
  gid = {gid}
[ttrpc]
  address = "{socket}.ttrpc"
  uid = {uid}
  gid = {gid}
[[plugins."io.containerd.transfer.v1.local".unpack_config]]
  platform = "linux"
  snapshotter = "{snapshotter}"
"""

_CRI = """\
[plugins."io.containerd.grpc.v1.cri".registry]
config_path = "{directory}/hosts"
[plugins."io.containerd.grpc.v1.cri".cni]
conf_dir = "{directory}/cni"
[[plugins."io.containerd.transfer.v1.local".unpack_config]]
  platform = "linux"
  snapshotter = "overlayfs"
"""


class Containerd:
    """containerd on a node.

    Args:
        node: The node on which the process runs.
        directory: A new directory for everything that containerd writes.
        unpack: Whether pulls unpack the images, as users' pulls do. This needs a privileged network.
        settings: Further tables of containerd's configuration, in TOML.
        release: The containerd release. The default is `releases.release()`.
        with_cri: Whether to enable the CRI plug-in, which needs root. All images are then in Kubernetes' namespace.
        snapshotter: Where images are unpacked. ``overlayfs`` needs root. Only ``native`` works on every file system.

    Attributes:
        hosts: The directory of the hosts.toml files.
        namespace: The namespace of all images.
    """

    def __init__(
        self,
        node: Node,
        directory: Path,
        *,
        unpack: bool,
        settings: str = "",
        release: Release | None = None,
        with_cri: bool = False,
        snapshotter: str = "native",
    ) -> None:
        self.release = release or chosen_release()
        self._node = node
        self._unpack = unpack
        self._snapshotter = snapshotter
        self._directory = directory
        self._process: Process | None = None
        self.socket = directory / "c.sock"
        self.hosts = directory / "hosts"
        self.namespace = KUBERNETES if with_cri else NAMESPACE
        self._content = directory / "root/io.containerd.content.v1.content"
        directory.mkdir(parents=True)
        disabled = [*_DISABLED, *([] if with_cri else _FOR_PODS)]
        if not with_cri and snapshotter != "overlayfs":
            disabled.append(_OVERLAYFS)
        self.configuration = directory / "containerd.toml"
        self.configuration.write_text(
            _CONFIGURATION.format(
                directory=directory,
                disabled=disabled,
                socket=self.socket,
                uid=os.geteuid(),
                gid=os.getegid(),
                snapshotter=snapshotter,
            )
            + (_CRI.format(directory=directory) if with_cri else "")
            + settings
        )

    @property
    def process(self) -> Process:
        """The running process."""
        assert self._process is not None, f"containerd at {self.socket} is not started"
        return self._process

    def start(self) -> None:
        """Start containerd and wait until it answers."""
        self.launch()
        self.wait_ready()

    def launch(self) -> None:
        """Start containerd, and do not wait until it answers."""
        command = [self.release.program("containerd"), "--config", str(self.configuration)]
        self._process = Process(self._node.command(command), self._directory / _LOG)

    def log(self) -> str:
        """Return everything that containerd has logged."""
        return _read_log(self._directory / _LOG)

    def pull_log(self) -> str:
        """Return what all pulls that were started with `start_pull` have written."""
        return _read_log(self._directory / _PULL_LOG)

    def wait_ready(self) -> None:
        """Wait until containerd answers."""
        wait_for(self._is_ready, f"containerd answers at {self.socket}")
        if self.namespace == KUBERNETES:
            wait_for(partial(cri.is_ready, self.socket), f"containerd's CRI plug-in answers at {self.socket}")

    def stop(self) -> None:
        """Stop containerd, if it runs. Its content stays."""
        if self._process is not None:
            self._process.stop()
            self._process = None

    def set_mirrors(self, registry: str, *mirrors: str, server: str | None = None) -> None:
        """Write a hosts.toml, so that pulls from `registry` try `mirrors` first.

        Args:
            registry: The `host:port` of a registry that speaks plain HTTP.
            mirrors: Base URLs. Without any, pulls go directly to the registry.
            server: The `host:port` of the registry that is asked last. By default, this is `registry`.
        """
        directory = self.hosts / registry
        directory.mkdir(parents=True, exist_ok=True)
        upstream = f"http://{server or registry}"
        hosts = mirrors or [upstream]  # containerd 1.6 ignores a file without a host
        entries = [f'[host."{host}"]\n  capabilities = ["pull", "resolve"]\n' for host in hosts]
        (directory / "hosts.toml").write_text("\n".join([f'server = "{upstream}"', *entries]))

    def pull(self, name: str, *options: str) -> None:
        """Pull the image called `name` with `ctr` and these options of it.

        Raises:
            CommandFailed: The pull failed.
        """
        run(self._pull_command(name, *options))

    def cri_pull(self, name: str, credentials: Credentials | None = None) -> None:
        """Pull the image called `name` through the CRI API, as Kubernetes does, with or without a pull secret.

        Raises:
            CommandFailed: The pull failed.
        """
        cri.pull(self.socket, name, credentials)

    def start_pull(self, name: str, *options: str) -> Process:
        """Start a pull and return the `ctr` process. If that process ends, the pull ends.

        In containerd 1, `ctr` fetches the content. In containerd 2, the daemon does.
        """
        return Process(self._pull_command(name, *options), self._directory / _PULL_LOG)

    def start_local_pull(self, name: str) -> Process:
        """Start a pull in which `ctr` itself fetches the content, in every release. Return the `ctr` process."""
        return self.start_pull(name, *(["--local"] if self._unpack and _has_local_option(self.release) else []))

    def start_pull_and_freeze(self, name: str, layer: Descriptor) -> Process:
        """Start a pull, and freeze it when less than half of `layer` has arrived. Return the frozen `ctr` process.

        If a pull is too fast, its image is removed and the pull starts again. The layer has to be large.
        """
        for _ in range(10):
            pull = self.start_local_pull(name)
            wait_for(partial(self._has_begun, pull, layer.digest), "the layer begins to arrive", pause=0.001)
            pull.freeze()
            if 0 < self.received_bytes(layer.digest) < layer.size // 2:
                return pull
            pull.resume()
            pull.succeed()
            self.remove(name)
        raise AssertionError("every pull was over before it could be frozen")

    def ctr(self, *arguments: str) -> str:
        """Run `ctr` with these arguments and return its output.

        Raises:
            CommandFailed: `ctr` failed.
        """
        return run(self._ctr(*arguments)).decode()

    def image_names(self) -> set[str]:
        """Return the names of all images."""
        return set(self.ctr("images", "ls", "-q").split())

    def digests(self) -> set[str]:
        """Return the digests of all complete blobs in the content store."""
        return set(self.ctr("content", "ls", "-q").split())

    def fetched_digests(self) -> set[str]:
        """Return the digests of the complete blobs of which containerd has noted from which registry they came."""
        lines = self.ctr("content", "ls").splitlines()
        return {line.split()[0] for line in lines if "containerd.io/distribution.source." in line}

    def blob_path(self, digest: str) -> Path:
        """Return the path of a blob in the content store."""
        return self._content / "blobs" / digest.replace(":", "/")

    def received_bytes(self, digest: str) -> int:
        """Return how many bytes of a blob have arrived while it is being pulled; 0 if nothing pulls it."""
        try:
            path = self.unfinished_path(digest)
            return 0 if path is None else path.stat().st_size
        except FileNotFoundError:  # committed or aborted since it was found
            return 0

    def unfinished_path(self, digest: str) -> Path | None:
        """Return the path of the file to which a blob is being written; None if nothing pulls it."""
        for ref in self._content.glob("ingest/*/ref"):
            try:
                if ref.read_text().endswith(digest):
                    return ref.with_name("data")
            except FileNotFoundError:  # committed or aborted since it was listed
                continue
        return None

    def is_fetching(self) -> bool:
        """Return whether the daemon has an incomplete blob open."""
        ingest, found = str(self._content / "ingest"), False
        for descriptor in Path("/proc", str(self.process.pid), "fd").iterdir():
            with suppress(FileNotFoundError):  # closed since it was listed
                found = found or str(descriptor.readlink()).startswith(ingest)
        return found

    def import_archive(self, archive: Path) -> None:
        """Import an image archive."""
        self.ctr("images", "import", *([] if self._unpack else ["--no-unpack"]), *self._unpack_options(), str(archive))

    def remove(self, *names: str) -> None:
        """Remove images and wait for the garbage collection."""
        self.ctr("images", "rm", "--sync", *names)

    def _has_begun(self, pull: Process, digest: str) -> bool:
        return self.received_bytes(digest) > 0 or not pull.is_running

    def _pull_command(self, name: str, *options: str) -> list[str]:
        if not self._unpack:
            fetch = self._ctr("content", "fetch", "--hosts-dir", str(self.hosts), *options, name)
            return self._node.command(fetch)
        if not _has_local_option(self.release) or "--local" in options:  # ctr fetches; it has no limit by default
            options = ("--max-concurrent-downloads", str(_LAYERS_AT_ONCE), *options)
        # `--debug` leaves out the progress bar, for which ctr asks containerd for everything ten times a second.
        pull = [*self._unpack_options(), "--hosts-dir", str(self.hosts), *options, name]
        return self._node.command(self._ctr("images", "pull", *pull, more=["--debug"]))

    def _unpack_options(self) -> list[str]:
        return ["--snapshotter", self._snapshotter] if self._unpack else []

    def _ctr(self, *arguments: str, more: Sequence[str] = ()) -> list[str]:
        """Return a command of `ctr`. It reaches containerd by the socket; only a pull needs the network of the node."""
        options = ["--address", str(self.socket), "--namespace", self.namespace, *more]
        return [self.release.program("ctr"), *options, *arguments]

    def _is_ready(self) -> bool:
        if self._process is None or not self._process.is_running:
            raise CommandFailed(f"containerd did not start:\n{self.log()}")
        try:
            # Until containerd listens, the ctr of containerd 1 would wait for a second or more.
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(str(self.socket))
            self.ctr("version")
        except (OSError, CommandFailed):
            return False
        return True


def _read_log(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""


@cache
def _has_local_option(release: Release) -> bool:
    """Return whether `ctr images pull` of a release has the option ``--local``."""
    return "--local" in run([release.program("ctr"), "images", "pull", "--help"]).decode()
