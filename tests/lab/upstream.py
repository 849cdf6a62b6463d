"""The upstream registry: Debian's docker-registry. Tests count requests in its access log."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.lab.authentication import Authentication, Credentials
from tests.lab.network import REGISTRY_PORT, Node
from tests.lab.processes import CommandFailed, Process, is_idle, run, wait_for
from tests.support.certificates import Certificate

from peili.mirror.testing.images import Image

_CONFIGURATION = """\
version: 0.1
log: {{level: warn}}
storage:
  filesystem: {{rootdirectory: {storage}}}
  maintenance: {{uploadpurging: {{enabled: false}}}}
http: {{addr: "{name}", secret: laboratory{tls}}}
{auth}
"""

_TLS = ", tls: {{certificate: {cert}, key: {key}, clientcas: [{ca}]}}"

_LOG_LINE = re.compile(
    r'"(?P<method>[A-Z]+) (?P<path>\S+) HTTP/[0-9.]+" (?P<status>[0-9]+) (?P<size>[0-9]+) "(?P<referer>[^"]*)"'
)

_MARKER = "/v2/?marker="
"""How the paths begin of requests that are sent to see the log grow."""

_QUIET_MARKERS = 3
"""The registry has logged all that was before if it logged nothing else between so many markers."""


@dataclass(frozen=True, slots=True)
class Request:
    """One line of the access log, written when the response has ended. `size` is the number of bytes of its body."""

    method: str
    path: str
    status: int
    size: int
    referer: str


@dataclass(frozen=True, slots=True)
class Published:
    """An image in the registry."""

    image: Image
    registry: str
    repository: str
    tag: str

    @property
    def by_tag(self) -> str:
        """The reference of the image by tag, as runtimes take it."""
        return f"{self.registry}/{self.repository}:{self.tag}"

    @property
    def by_digest(self) -> str:
        """The reference of the image by digest, as runtimes take it."""
        return f"{self.registry}/{self.repository}@{self.image.target.digest}"

    @property
    def tag_url(self) -> str:
        """The path and query under which a mirror says what the tag means, with containerd's ``ns``."""
        return f"/v2/{self.repository}/manifests/{self.tag}?ns={self.registry}"

    def blob_url(self, digest: str) -> str:
        """Return the path and query under which a mirror serves a blob of the image, with containerd's ``ns``."""
        return f"/v2/{self.repository}/blobs/{digest}?ns={self.registry}"


class Upstream:
    """A registry on a node. Its content survives `stop`.

    Args:
        node: The node on which the process runs.
        directory: A new directory for the configuration, the log and the content.
        storage: The `storage` of another registry, with which this one shares its content.
        certificate: The registry's certificate. If it is given, the registry speaks TLS and requires clients to have a
            certificate of the same authority.
        authentication: How the registry authenticates users. By default, everyone may do everything.

    Attributes:
        name: The `host:port` of the registry, as references contain it.
        storage: The directory of the content.
    """

    def __init__(
        self,
        node: Node,
        directory: Path,
        *,
        storage: Path | None = None,
        certificate: Certificate | None = None,
        authentication: Authentication | None = None,
    ) -> None:
        self.node = node
        self.storage = storage or directory / "storage"
        self._tls = None if certificate is None else certificate.client_context()
        self._publisher = None if authentication is None else authentication.publisher
        self._directory = directory
        self._process: Process | None = None
        self._markers = itertools.count()
        self._port = node.port(REGISTRY_PORT)
        self.name = f"{node.address}:{self._port}"
        directory.mkdir(parents=True)
        self._configuration = directory / "registry.yml"
        tls = "" if certificate is None else _TLS.format(**certificate.files())
        auth = "" if authentication is None else f"auth: {authentication.settings}"
        self._configuration.write_text(_CONFIGURATION.format(storage=self.storage, name=self.name, tls=tls, auth=auth))

    @property
    def publisher(self) -> Credentials:
        """A user who may push and pull everything. The registry must authenticate users."""
        assert self._publisher is not None, f"everybody may do everything at {self.name}"
        return self._publisher

    @property
    def process(self) -> Process:
        """The running process."""
        assert self._process is not None, "the registry is not started"
        return self._process

    def start(self) -> None:
        """Start the registry, unless it runs, and wait until it answers."""
        if self._process is None:
            command = self.node.command(["docker-registry", "serve", str(self._configuration)])
            self._process = Process(command, self._directory / "registry.log")
            wait_for(self._is_ready, f"the registry answers at {self.name}")

    def stop(self) -> None:
        """Stop the registry, if it runs. The node then refuses connections."""
        if self._process is not None:
            self._process.stop()
            self._process = None

    def push(self, image: Image, repository: str, tag: str = "v1") -> Published:
        """Push an image that has the tag `tag` in its OCI layout."""
        name = f"{self.name}/{repository}"
        options = ["--all", "--preserve-digests", "--dest-tls-verify=false"]
        options += [] if self._publisher is None else [f"--dest-creds={self._publisher}"]
        source, target = f"oci:{image.path}:{tag}", f"docker://{name}:{tag}"
        run(self.node.command(["skopeo", "--insecure-policy", "copy", "--quiet", *options, source, target]))
        return Published(image, self.name, repository, tag)

    def log_position(self) -> int:
        """Return the number of lines of the access log, once it has all responses that clients have received."""
        return len(self._read_settled_log())

    def requests(self, since: int) -> Sequence[Request]:
        """Return the requests after a log position whose responses clients have received. The registry must run."""
        return [each for each in self._read_settled_log()[since:] if not _is_marker(each)]

    def bytes_sent(self, since: int) -> int:
        """Return how many bytes of content the registry sent after a log position, in responses that have ended."""
        return sum(each.size for each in self.requests(since) if _has_content(each))

    def blobs_sent(self, since: int) -> Sequence[str]:
        """Return the paths of the blobs that the registry sent after a log position."""
        return [each.path for each in self.requests(since) if _has_content(each) and "/blobs/" in each.path]

    def _read_settled_log(self) -> Sequence[Request]:
        """Return all lines of the log, after several marker requests in a row were all that it got.

        A client may have a response before the registry has logged it. The registry may even log a later request first:
        the thread that is about to log the earlier one may lack a processor for a while. So no thread may lack one.
        """
        length, quiet = len(self._read_log()), 0
        while True:
            wait_for(self._is_idle, "the registry has nothing to do")
            log = self._mark()
            quiet = 0 if any(not _is_marker(each) for each in log[length:]) else quiet + 1
            if quiet == _QUIET_MARKERS:
                return log
            length = len(log)

    def _is_idle(self) -> bool:
        return is_idle(self.process.pid)

    def _mark(self) -> Sequence[Request]:
        """Send a marker request, and return the log once it has that request."""
        path = f"{_MARKER}{next(self._markers)}"
        self._get_status(path)
        return wait_for(lambda: self._read_log_with(path), "the registry logs a request")

    def _read_log_with(self, path: str) -> Sequence[Request]:
        """Return all lines of the log, or none if no request for `path` is among them."""
        log = self._read_log()
        return log if any(each.path == path for each in log) else ()

    def _read_log(self) -> list[Request]:
        text = (self._directory / "registry.log").read_text(errors="replace")
        lines = (each.groupdict() for each in _LOG_LINE.finditer(text))
        return [
            Request(each["method"], each["path"], int(each["status"]), int(each["size"]), each["referer"])
            for each in lines
        ]

    def _get_status(self, path: str) -> int:
        return self.node.request("GET", self.node.address, self._port, path, tls=self._tls).status

    def _is_ready(self) -> bool:
        if not self.process.is_running:
            raise CommandFailed(f"the registry did not start:\n{(self._directory / 'registry.log').read_text()}")
        try:
            return self._get_status("/v2/") in {200, 401}
        except OSError:
            return False


def _is_marker(request: Request) -> bool:
    return request.path.startswith(_MARKER)


def _has_content(request: Request) -> bool:
    is_content = "/blobs/" in request.path or "/manifests/" in request.path  # and no ping, which has two bytes
    return is_content and request.method == "GET" and request.status in {200, 206}
