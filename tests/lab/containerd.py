"""One host's containerd: its own root, state and socket, and ctr as its client."""

from __future__ import annotations

import os
from contextlib import suppress
from functools import partial
from pathlib import Path

from tests.containerds import Release
from tests.lab import cri
from tests.lab.network import Place
from tests.lab.processes import CommandFailed, Process, run, wait_for
from tests.lab.releases import release as chosen_release

from peili.mirror import Descriptor

NAMESPACE, KUBERNETES = "default", "k8s.io"

# What a host without special file systems has no use for; its absence also keeps containerd out of /opt and /run/nri.
_DISABLED = [
    "io.containerd.internal.v1.opt",
    "io.containerd.internal.v1.restart",
    "io.containerd.internal.v1.tracing",
    "io.containerd.nri.v1.nri",
    "io.containerd.tracing.processor.v1.otlp",
    *(f"io.containerd.snapshotter.v1.{name}" for name in ("aufs", "blockfile", "btrfs", "devmapper", "zfs")),
]
# Nor has one without pods; without these, a normal user can run containerd.
_FOR_PODS = [
    "io.containerd.grpc.v1.cri",
    "io.containerd.cri.v1.images",
    "io.containerd.cri.v1.runtime",
    "io.containerd.snapshotter.v1.overlayfs",
]

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
  snapshotter = "native"
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
    """containerd at `place`, kept below `directory`. With `unpack`, pulled images are unpacked, as users do. `settings`
    are tables of its configuration, in TOML. `hosts` is the folder of its hosts.toml files. `release` is the installed
    one if nothing else is said. With `for_pods`, which needs root, it has its CRI plug-in, and all that is said of
    images is of Kubernetes' namespace.
    """

    def __init__(
        self,
        place: Place,
        directory: Path,
        *,
        unpack: bool,
        settings: str = "",
        release: Release | None = None,
        for_pods: bool = False,
    ) -> None:
        self.release = release or chosen_release()
        self._place = place
        self._unpack = unpack
        self._directory = directory
        self._process: Process | None = None
        self.socket = directory / "c.sock"
        self.hosts = directory / "hosts"
        self.namespace = KUBERNETES if for_pods else NAMESPACE
        self._content = directory / "root/io.containerd.content.v1.content"
        directory.mkdir(parents=True)
        disabled = _DISABLED if for_pods else [*_DISABLED, *_FOR_PODS]
        self.configuration = directory / "containerd.toml"
        self.configuration.write_text(
            _CONFIGURATION.format(
                directory=directory, disabled=disabled, socket=self.socket, uid=os.geteuid(), gid=os.getegid()
            )
            + (_CRI.format(directory=directory) if for_pods else "")
            + settings
        )

    @property
    def process(self) -> Process:
        """The running process."""
        assert self._process is not None, f"containerd at {self.socket} is not started"
        return self._process

    def start(self) -> None:
        """Start it and wait until it answers."""
        command = [self.release.program("containerd"), "--config", str(self.configuration)]
        self._process = Process(self._place.command(command), self._directory / "containerd.log")
        wait_for(self._answers, f"containerd answers at {self.socket}")
        if self.namespace == KUBERNETES:
            wait_for(partial(cri.is_ready, self.socket), f"containerd's CRI plug-in answers at {self.socket}")

    def stop(self) -> None:
        """Stop it, if it runs; what it has stays."""
        if self._process is not None:
            self._process.stop()
            self._process = None

    def mirror(self, registry: str, *mirrors: str) -> None:
        """Let pulls from `registry`, which speaks plain HTTP, try the base URLs `mirrors` first, if any."""
        directory = self.hosts / registry
        directory.mkdir(parents=True, exist_ok=True)
        upstream = f"http://{registry}"
        hosts = mirrors or [upstream]  # containerd 1.6 ignores a file without any
        entries = [f'[host."{host}"]\n  capabilities = ["pull", "resolve"]\n' for host in hosts]
        (directory / "hosts.toml").write_text("\n".join([f'server = "{upstream}"', *entries]))

    def pull(self, name: str, *options: str) -> None:
        """Pull the image called `name`, with options of ctr's. Raises CommandFailed."""
        run(self._pull_command(name, *options))

    def cri_pull(self, name: str) -> None:
        """Pull the image called `name` as Kubernetes does, by the CRI API. Raises CommandFailed."""
        cri.pull(self.socket, name)

    def begin_pull(self, name: str, *options: str) -> Process:
        """Start a pull. From containerd 2 on, the daemon fetches, and the pull ends with the process."""
        return Process(self._pull_command(name, *options), self._directory / "pull.log")

    def begin_local_pull(self, name: str) -> Process:
        """Start a pull whose process is the client, through which all bytes go."""
        return self.begin_pull(name, *(["--local"] if self._may_be_local() else []))

    def begin_pull_and_freeze(self, name: str, layer: Descriptor) -> Process:
        """A pull that stands still with less than half of a large layer there, until it is resumed.

        One that was too fast to be caught is undone and tried again.
        """
        for _ in range(10):
            pull = self.begin_local_pull(name)
            wait_for(partial(self._begun, pull, layer.digest), "the layer begins to arrive", pause=0.001)
            pull.freeze()
            if 0 < self.arrived(layer.digest) < layer.size // 2:
                return pull
            pull.resume()
            pull.succeed()
            self.remove(name)
        raise AssertionError("every pull was over before it could be frozen")

    def ctr(self, *arguments: str) -> str:
        """What ctr prints. Raises CommandFailed."""
        return run(self._ctr(*arguments)).decode()

    def read(self, digest: str) -> bytes:
        """A whole blob, by way of containerd. Raises CommandFailed."""
        return run(self._ctr("content", "get", digest))

    def names(self) -> set[str]:
        """The names of the images."""
        return set(self.ctr("images", "ls", "-q").split())

    def digests(self) -> set[str]:
        """All that is in the content store, whole."""
        return set(self.ctr("content", "ls", "-q").split())

    def blob_path(self, digest: str) -> Path:
        """Where the content store keeps a blob."""
        return self._content / "blobs" / digest.replace(":", "/")

    def arrived(self, digest: str) -> int:
        """How many bytes of a blob that is still being pulled are there."""
        for ref in self._content.glob("ingest/*/ref"):
            try:
                if ref.read_text().endswith(digest):
                    return ref.with_name("data").stat().st_size
            except FileNotFoundError:  # committed or aborted meanwhile
                continue
        return 0

    def is_fetching(self) -> bool:
        """Whether the daemon has an unfinished blob open."""
        ingest, found = str(self._content / "ingest"), False
        for descriptor in Path("/proc", str(self.process.pid), "fd").iterdir():
            with suppress(FileNotFoundError):  # closed since it was listed
                found = found or str(descriptor.readlink()).startswith(ingest)
        return found

    def import_archive(self, archive: Path) -> None:
        """Import an image archive, as air-gapped hosts do."""
        self.ctr("images", "import", *([] if self._unpack else ["--no-unpack"]), *self._snapshotter(), str(archive))

    def remove(self, *names: str) -> None:
        """Remove images and wait for the garbage collection that follows."""
        self.ctr("images", "rm", "--sync", *names)

    def _begun(self, pull: Process, digest: str) -> bool:
        return self.arrived(digest) > 0 or not pull.running

    def _may_be_local(self) -> bool:
        return self._unpack and "--local" in run([self.release.program("ctr"), "images", "pull", "--help"]).decode()

    def _pull_command(self, name: str, *options: str) -> list[str]:
        how = ["images", "pull", *self._snapshotter()] if self._unpack else ["content", "fetch"]
        return self._ctr(*how, "--hosts-dir", str(self.hosts), *options, name)

    def _snapshotter(self) -> list[str]:
        return ["--snapshotter", "native"] if self._unpack else []

    def _ctr(self, *arguments: str) -> list[str]:
        return self._place.command(
            [self.release.program("ctr"), "--address", str(self.socket), "--namespace", self.namespace, *arguments]
        )

    def _answers(self) -> bool:
        if self._process is None or not self._process.running:
            raise CommandFailed(f"containerd did not start:\n{(self._directory / 'containerd.log').read_text()}")
        try:
            self.ctr("version")
        except CommandFailed:
            return False
        return True
