"""Pulls of private images by real clients, each with a peili as mirror or without one, so that tests can compare."""

from __future__ import annotations

import base64
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tests.lab.authentication import Credentials, Htpasswd
from tests.lab.containerd import Containerd
from tests.lab.lab import GENEROUS_LIMITS, Host, Lab
from tests.lab.network import Answer
from tests.lab.processes import CommandFailed, wait_for
from tests.lab.pullers import REGISTRY, Puller
from tests.lab.token_server import TokenServer, User
from tests.lab.upstream import Published, Upstream

from peili.mirror import Digest

RIGHT = Credentials("alice", "secret of alice")
"""May pull from ``team/*``."""
WRONG = Credentials("alice", "another secret")
OTHER = Credentials("bob", "secret of bob")
"""May pull from ``other/*`` only."""
USERS = {
    RIGHT.user: User(RIGHT.password, ["team/*"]),
    OTHER.user: User(OTHER.password, ["other/*"]),
}
BASIC_REGISTRY = "basic.test"
"""What Podman and skopeo call the registry that takes no tokens."""
PUBLIC = ("public/*",)
DEFER = {"kind": "defer"}
UNAUTHORIZED = 401


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a pull has ended.

    Attributes:
        succeeded: Whether the client has the whole image.
        why: The error of the client, if not.
    """

    succeeded: bool
    why: str = ""


class Client(ABC):
    """A client on a host. Each pull starts without any content."""

    def pull(self, image: Published, credentials: Credentials | None, *, tag: bool = False, peili: bool) -> Outcome:
        """Pull an image and return how that ended.

        Args:
            image: The image.
            credentials: The pull secret.
            tag: Whether to pull by tag, not by digest.
            peili: Whether peili is asked first. Otherwise, only the registry is asked.
        """
        self.forget()
        try:
            self._pull(image, credentials, tag=tag, peili=peili)
        except CommandFailed as error:
            return Outcome(False, str(error))
        return Outcome(True)

    @abstractmethod
    def forget(self) -> None:
        """Remove all content."""

    @abstractmethod
    def _pull(self, image: Published, credentials: Credentials | None, *, tag: bool, peili: bool) -> None: ...


class Runtime(Client):
    """containerd with the client ctr, or through the CRI API.

    Args:
        containerd: The containerd, with its CRI plug-in.
        mirror: The URL of the local door of its host.
        cri: Whether to pull through the CRI API.
    """

    def __init__(self, containerd: Containerd, mirror: str, *, cri: bool) -> None:
        self.containerd = containerd
        self._mirror = mirror
        self._cri = cri

    def forget(self) -> None:
        if names := self.containerd.image_names():
            self.containerd.remove(*names)

    def _pull(self, image: Published, credentials: Credentials | None, *, tag: bool, peili: bool) -> None:
        self.containerd.set_mirrors(image.registry, *([self._mirror] if peili else []))
        name = image.by_tag if tag else image.by_digest
        if self._cri:
            self.containerd.cri_pull(name, credentials)
        else:
            self.containerd.pull(name, *as_options(credentials))


class Tool(Client):
    """Podman or skopeo.

    Args:
        name: The name of the program.
        host: The host, whose peili is the mirror.
        upstream: The registry of all images.
        lab: The laboratory, for directories.
        known_as: What the registry is called in references.
    """

    def __init__(self, name: str, host: Host, upstream: Upstream, lab: Lab, known_as: str = REGISTRY) -> None:
        self._known_as = known_as
        self._pullers = {
            has_mirror: Puller(
                name,
                host.node,
                lab.directory / f"{name}-{known_as[0]}{int(has_mirror)}",
                upstream.name,
                host.peili.local if has_mirror else None,
                known_as=known_as,
            )
            for has_mirror in (True, False)
        }

    def forget(self) -> None:
        for each in self._pullers.values():
            each.reset()

    def _pull(self, image: Published, credentials: Credentials | None, *, tag: bool, peili: bool) -> None:
        suffix = f":{image.tag}" if tag else f"@{image.image.target.digest}"
        self._pullers[peili].pull(f"{self._known_as}/{image.repository}{suffix}", credentials)


def as_options(credentials: Credentials | None) -> Sequence[str]:
    """Return the options of ctr for a pull with these credentials."""
    return () if credentials is None else ("--user", str(credentials))


@dataclass(frozen=True)
class Scene:
    """A laboratory with a private registry, whose peilis give covered images only to those who may pull them.

    Attributes:
        lab: The laboratory.
        tokens: The token server of the registry.
        private: The registry. Its repositories ``team/*`` and ``other/*`` are covered, ``public/*`` are not.
        basic: A registry that takes no tokens. All of it is covered.
    """

    lab: Lab
    tokens: TokenServer
    private: Upstream
    basic: Upstream

    @classmethod
    def set_up(cls, lab: Lab) -> Scene:
        """Add the registries to a laboratory whose peer doors are closed."""
        tokens = lab.add_token_server(USERS, public=PUBLIC)
        basic = lab.add_upstream("basic", Htpasswd(lab.directory))
        return cls(lab, tokens, lab.add_upstream("private", tokens), basic)

    def token(self, credentials: Credentials, image: Published) -> str:
        """Return a token for the repository of an image. It is good for nothing if the user may not pull from there."""
        issued = self.tokens.issue(credentials, [f"repository:{image.repository}:pull"])
        assert issued is not None
        return issued.token

    def headers(self, image: Published, credentials: Credentials | None) -> Mapping[str, str]:
        """Return the headers of a request for an image: with a new token, or with Basic if the registry takes none."""
        if credentials is None:
            return {}
        if image.registry == self.basic.name:
            return {"Authorization": f"Basic {base64.b64encode(str(credentials).encode()).decode()}"}
        return {"Authorization": f"Bearer {self.token(credentials, image)}"}

    def request(self, host: Host, image: Published, digest: Digest, credentials: Credentials | None = None) -> Answer:
        """Request the manifest or a layer of an image from the local door, with or without credentials."""
        path = image.blob_url(digest)
        if digest == image.image.target.digest:
            path = path.replace("/blobs/", "/manifests/")
        return host.peili.request("GET", path, self.headers(image, credentials))

    def wait_given(self, host: Host, image: Published, credentials: Credentials) -> None:
        """Wait until the local door gives all of an image to these credentials."""
        for blob in image.image.blobs:
            wait_for(
                lambda digest=blob.digest: self.request(host, image, digest, credentials).status == 200,  # type: ignore[misc]  # bound early
                f"{host.name} gives {blob.digest}",
            )

    def start_peili(
        self,
        *names: str,
        resolver: Mapping[str, Any] = DEFER,
        limits: Mapping[str, float] = GENEROUS_LIMITS,
        **mirror: Any,
    ) -> None:
        """Start peili on some hosts, with these sections, and with further keys of the section `mirror`."""
        roots = {
            self.private.name: self.private,
            REGISTRY: self.private,
            self.basic.name: self.basic,
            BASIC_REGISTRY: self.basic,
        }
        private = [f"{registry}/{team}/*" for registry in (self.private.name, REGISTRY) for team in ("team", "other")]
        sections: Any = {f'upstream."{name}"': {"url": f"http://{root.name}"} for name, root in roots.items()}
        self.lab.start_peili(
            *names,
            mirror={"authorize": [*private, self.basic.name, BASIC_REGISTRY], **mirror},
            resolver=resolver,
            limits=limits,
            **sections,
        )


@dataclass(frozen=True)
class Cost:
    """What a pull by peili cost the registry, which sent no layer.

    Attributes:
        tokens: How many tokens were issued.
        requests: How many requests the registry answered with 2xx, all but those for challenges.
    """

    tokens: int
    requests: int


def cost(scene: Scene, client: Client, image: Published) -> Cost:
    """Pull an image by tag with the right secret, and return what that cost."""
    tokens, position = len(scene.tokens.issued), scene.private.log_position()
    outcome = client.pull(image, RIGHT, tag=True, peili=True)
    assert outcome.succeeded, outcome.why
    assert not scene.private.blobs_sent(position)
    requests = [each for each in scene.private.requests(position) if each.status != UNAUTHORIZED]
    return Cost(len(scene.tokens.issued) - tokens, len(requests))
