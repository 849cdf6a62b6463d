"""What a request's path asks for: the pull part of the OCI distribution spec, and the registry that it means.

Parsing only. The registry comes from ``?ns=`` (as containerd sends it), else the `OCI-Namespace` header, else a leading
path component that is a host name (for runtimes that send neither), else a default.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from urllib.parse import quote

from peili.mirror.oci.references import Digest, is_registry, is_repository, is_tag, looks_like_registry
from peili.mirror.oci.refusal import (
    DIGEST_INVALID,
    MANIFEST_INVALID,
    NAME_INVALID,
    UNSUPPORTED,
    HTTPError,
)


class Endpoint(Enum):
    """The kinds of things that can be asked for."""

    BASE = "base"
    MANIFEST = "manifests"
    BLOB = "blobs"
    TAGS = "tags"


@dataclass(frozen=True, slots=True)
class Target:
    """What is asked for. A manifest has a digest or a tag, a blob a digest; `registry` is None where nothing says."""

    endpoint: Endpoint
    registry: str | None = None
    repository: str = ""
    digest: Digest | None = None
    tag: str | None = None

    @property
    def path(self) -> str:
        """Where a peer door has it: path and query, from the slash on."""
        ns = f"?ns={quote(self.registry, safe='')}" if self.registry else ""
        repository = self.repository
        first, slash, _ = repository.partition("/")
        if self.registry and slash and _is_said_twice(first, self.registry):
            repository = f"{self.registry}/{repository}"  # its first part would be taken for the registry
        return f"/v2/{repository}/{self.endpoint.value}/{self.digest or self.tag}{ns}"

    @property
    def name(self) -> str:
        """For messages: registry, repository and tag or digest."""
        registry = f"{self.registry}/" if self.registry else ""
        suffix = f":{self.tag}" if self.tag else f"@{self.digest}" if self.digest else ""
        return f"{registry}{self.repository}{suffix}"


def api_path(path: str, root_path: str) -> str:
    """The part of `path` behind ``/v2``, for a door that is mounted at `root_path`. Raises HTTPError (404).

    A mount that ends in ``/v2`` has taken it off already; a second one belongs to the repository.
    """
    inner = path[len(root_path) :] if root_path and path.startswith(root_path) else path
    if root_path.endswith("/v2"):
        return inner
    if inner == "/v2" or inner.startswith("/v2/"):
        return inner[len("/v2") :]
    raise HTTPError(404, UNSUPPORTED, "not part of the API; paths begin with /v2/")


def parse_target(path: str, *, ns: str | None, default_registry: str | None) -> Target:
    """What `path`, from behind ``/v2`` on, asks for; `ns` is what the query or the header says. Raises HTTPError."""
    if path in {"", "/"}:
        return Target(Endpoint.BASE)
    *name, kind, last = path.split("/")[1:] if path.count("/") > 1 else ["", "", ""]
    if (kind, last) == ("tags", "list"):
        return Target(Endpoint.TAGS, *_registry_and_repository(name, ns, default_registry))
    if kind == "manifests":
        registry, repository = _registry_and_repository(name, ns, default_registry)
        if ":" in last:
            return Target(Endpoint.MANIFEST, registry, repository, digest=_digest(last))
        return Target(Endpoint.MANIFEST, registry, repository, tag=_tag(last))
    if kind == "blobs":
        registry, repository = _registry_and_repository(name, ns, default_registry)
        return Target(Endpoint.BLOB, registry, repository, digest=_digest(last))
    raise HTTPError(404, UNSUPPORTED, "not part of the API that a mirror has: manifests, blobs and tags/list")


def _registry_and_repository(name: list[str], ns: str | None, default: str | None) -> tuple[str | None, str]:
    if ns is not None and not is_registry(ns):
        raise HTTPError(400, NAME_INVALID, f"ns is not a registry's host name: {ns[:80]!a}")
    registry = ns
    if len(name) > 1 and (looks_like_registry(name[0]) if ns is None else _is_said_twice(name[0], ns)):
        registry, *name = name  # some clients say it twice
    repository = "/".join(name)
    if not is_repository(repository):
        raise HTTPError(400, NAME_INVALID, f"not a repository name: {repository[:80]!a}")
    return registry if registry is not None else default, repository


def _is_said_twice(first: str, ns: str) -> bool:
    """Whether the first component of a name is the registry that `ns` names too; a plain word is the repository's."""
    return looks_like_registry(first) and first.lower() == ns.lower()


def _digest(text: str) -> Digest:
    try:
        return Digest(text)
    except ValueError as error:
        raise HTTPError(400, DIGEST_INVALID, str(error)) from error


def _tag(text: str) -> str:
    if not is_tag(text):
        raise HTTPError(400, MANIFEST_INVALID, f"neither a tag nor a digest: {text[:80]!a}")
    return text
