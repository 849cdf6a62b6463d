"""The registry that references name: Debian's docker-registry, with an access log that tests can count in."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.lab.network import REGISTRY_PORT, Place
from tests.lab.processes import CommandFailed, Process, run, wait_for
from tests.support.certificates import Certificate

from peili.mirror.testing.images import Image

_CONFIGURATION = """\
version: 0.1
log: {{level: warn}}
storage:
  filesystem: {{rootdirectory: {storage}}}
  maintenance: {{uploadpurging: {{enabled: false}}}}
http: {{addr: "{name}", secret: laboratory{tls}}}
"""

_TLS = ", tls: {{certificate: {cert}, key: {key}, clientcas: [{ca}]}}"

_LOGGED = re.compile(r'"(?P<method>[A-Z]+) (?P<path>\S+) HTTP/[0-9.]+" (?P<status>[0-9]+) [0-9]+ "(?P<referer>[^"]*)"')


@dataclass(frozen=True, slots=True)
class Request:
    """One line of the access log."""

    method: str
    path: str
    status: int
    referer: str


@dataclass(frozen=True, slots=True)
class Published:
    """An image as the registry has it."""

    image: Image
    registry: str
    repository: str
    tag: str

    @property
    def by_tag(self) -> str:
        """Its name for a runtime, by tag."""
        return f"{self.registry}/{self.repository}:{self.tag}"

    @property
    def by_digest(self) -> str:
        """Its name for a runtime, by digest."""
        return f"{self.registry}/{self.repository}@{self.image.target.digest}"

    def blob(self, digest: str) -> str:
        """Where a mirror has one of its blobs (OCI distribution spec, with containerd's ``ns``)."""
        return f"/v2/{self.repository}/blobs/{digest}?ns={self.registry}"


class Upstream:
    """The registry at `place`, kept below `directory`; what was pushed outlives a stop.

    With a `certificate` it speaks TLS, and only to those who have one of the same authority. With `storage` it has the
    content of another.
    """

    def __init__(
        self, place: Place, directory: Path, *, storage: Path | None = None, certificate: Certificate | None = None
    ) -> None:
        self.place = place
        self.storage = storage or directory / "storage"
        self._tls = None if certificate is None else certificate.client_context()
        self._directory = directory
        self._process: Process | None = None
        self._marks = itertools.count()
        self._port = place.port(REGISTRY_PORT)
        self.name = f"{place.address}:{self._port}"
        directory.mkdir(parents=True)
        self._configuration = directory / "registry.yml"
        tls = "" if certificate is None else _TLS.format(**certificate.files())
        self._configuration.write_text(_CONFIGURATION.format(storage=self.storage, name=self.name, tls=tls))

    @property
    def process(self) -> Process:
        """The running process."""
        assert self._process is not None, "the registry is not started"
        return self._process

    def start(self) -> None:
        """Start it, unless it runs, and wait until it answers."""
        if self._process is None:
            command = self.place.command(["docker-registry", "serve", str(self._configuration)])
            self._process = Process(command, self._directory / "registry.log")
            wait_for(self._answers, f"the registry answers at {self.name}")

    def stop(self) -> None:
        """Stop it, if it runs: from now on connections are refused."""
        if self._process is not None:
            self._process.stop()
            self._process = None

    def push(self, image: Image, repository: str, tag: str = "v1") -> Published:
        """Push an image that its layout knows as `tag`."""
        name = f"{self.name}/{repository}"
        options = ["--all", "--preserve-digests", "--dest-tls-verify=false"]
        source, target = f"oci:{image.path}:{tag}", f"docker://{name}:{tag}"
        run(self.place.command(["skopeo", "--insecure-policy", "copy", "--quiet", *options, source, target]))
        return Published(image, self.name, repository, tag)

    def mark(self) -> int:
        """A point in the access log: whatever was answered before it, stands before it."""
        path = f"/v2/?mark={next(self._marks)}"
        self._ask(path)
        return wait_for(lambda: self._position(path), "the registry logs a request")

    def requests(self, since: int) -> Sequence[Request]:
        """What was asked after a mark, but for other marks."""
        return [each for each in self._log()[since:] if "?mark=" not in each.path]

    def blobs_sent(self, since: int) -> Sequence[str]:
        """The paths of the blobs that were fetched after a mark."""
        sent = [each for each in self.requests(since) if each.method == "GET" and each.status in {200, 206}]
        return [each.path for each in sent if "/blobs/" in each.path]

    def _position(self, path: str) -> int:
        return next((n for n, each in enumerate(self._log(), start=1) if each.path == path), 0)

    def _log(self) -> list[Request]:
        text = (self._directory / "registry.log").read_text(errors="replace")
        lines = (each.groupdict() for each in _LOGGED.finditer(text))
        return [Request(each["method"], each["path"], int(each["status"]), each["referer"]) for each in lines]

    def _ask(self, path: str) -> int:
        return self.place.ask("GET", self.place.address, self._port, path, tls=self._tls).status

    def _answers(self) -> bool:
        if not self.process.running:
            raise CommandFailed(f"the registry did not start:\n{(self._directory / 'registry.log').read_text()}")
        try:
            return self._ask("/v2/") == 200
        except OSError:
            return False
