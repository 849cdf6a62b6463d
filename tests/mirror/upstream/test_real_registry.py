"""`UpstreamClient` and the resolver ``upstream`` with Debian's docker-registry, its tokens and its htpasswd."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
from collections.abc import Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import pytest
from tests.lab.authentication import Credentials, Htpasswd
from tests.lab.network import LoopbackNetwork
from tests.lab.token_server import EXPIRED, TokenServer, User
from tests.lab.upstream import Published, Upstream
from tests.mirror.resolvers.many_hosts import many_hosts
from tests.program_cache import SEARCH_PATH
from tests.support.plain_http import plain_client

from peili.mirror import AuthorizationRequired, Digest, Limits, Reference, Requester
from peili.mirror.oci.checked_children import checked_children_of
from peili.mirror.oci.references import DOCKER_MANIFEST, OCI_MANIFEST
from peili.mirror.oci.requests import Endpoint
from peili.mirror.resolvers import UpstreamResolver
from peili.mirror.testing import context_for, make_layout
from peili.mirror.upstream.answers import Absent, Challenged, Fetched, Question, Readable, Unreachable
from peili.mirror.upstream.api_roots import default_roots, trusting
from peili.mirror.upstream.client import UpstreamClient

HAS_PROGRAMS = all(shutil.which(each, path=SEARCH_PATH) for each in ("docker-registry", "skopeo"))
pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(not HAS_PROGRAMS, reason="docker-registry or skopeo is not installed"),
]

HERE = trusting(default_roots, lambda _: True)
"""Where the registries are, which listen on loopback."""
PATIENT = Limits(upstream_timeout=20, connect_timeout=20)
ALICE = Credentials("alice", "secret")


@dataclass(frozen=True, slots=True)
class Registries:
    """A registry with tokens and one with htpasswd, both with the same image, whose layout is in `directory`."""

    directory: Path
    tokens: TokenServer
    private: Upstream
    basic: Upstream
    image: Published
    public: Published

    def token(self, *repositories: str, user: Credentials | None = ALICE) -> str:
        """Return the Authorization header with a token for these repositories."""
        issued = self.tokens.issue(user, [f"repository:{each}:pull" for each in repositories])
        assert issued is not None
        return f"Bearer {issued.token}"

    def question(self, repository: str, authorization: str | None = None, *, tag: str = "v1") -> Question:
        return Question(self.private.name, repository, Endpoint.MANIFEST, tag, authorization)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Generator[Registries]:
    directory = tmp_path_factory.mktemp("registries")
    image = make_layout(directory / "image", layers=[20_000], tags=["v1"])
    with LoopbackNetwork() as network:
        node = network.add_node("private")
        tokens = TokenServer(node, directory / "tokens", users={"alice": User("secret", ["team/*"])}, public=["open/*"])
        private = Upstream(node, directory / "private", authentication=tokens)
        passwords = Htpasswd(directory)
        basic = Upstream(network.add_node("basic"), directory / "basic", authentication=passwords)
        tokens.start()
        private.start()
        basic.start()
        try:
            published = private.push(image, "team/app")
            public = private.push(image, "open/app")
            basic.push(image, "team/app")
            yield Registries(directory, tokens, private, basic, published, public)
        finally:
            private.stop()
            basic.stop()
            tokens.stop()


def basic_header(credentials: Credentials) -> str:
    return f"Basic {base64.b64encode(str(credentials).encode()).decode()}"


async def test_a_token_registry_answers_by_rights(real: Registries) -> None:
    target = real.image.image.target
    async with UpstreamClient(PATIENT, roots=HERE) as client:
        challenge = await client.challenge(real.private.name)
        assert not isinstance(challenge, Unreachable)
        assert challenge is not None
        assert (challenge.scheme, challenge.parameters["realm"]) == ("Bearer", real.tokens.realm)
        assert isinstance(await client.ask(real.question("team/app")), Challenged)

        found = await client.ask(real.question("team/app", real.token("team/app")))
        assert isinstance(found, Readable)
        assert found.descriptor is not None
        assert (found.descriptor.digest, found.descriptor.size) == (target.digest, target.size)
        assert isinstance(await client.ask(real.question("open/app", real.token("open/app", user=None))), Readable)
        absent = real.question("team/app", real.token("team/app"), tag="none")
        assert await client.ask(absent) == Absent()

        refused = await client.ask(real.question("team/app", real.token("open/app")))
        assert isinstance(refused, Challenged)
        assert refused.challenge.parameters["error"] == "insufficient_scope"
        real.tokens.lifetime = EXPIRED
        try:
            expired = await client.ask(real.question("team/app", real.token("team/app")))
        finally:
            real.tokens.lifetime = 300
        assert isinstance(expired, Challenged)
        assert expired.challenge.parameters["error"] == "invalid_token"


async def push(
    real: Registries, repository: str, data: bytes, media_type: str = OCI_MANIFEST, blobs: Sequence[bytes] = ()
) -> int:
    """Push blobs and a manifest as the user who may push everywhere, and return the status of the manifest."""
    issued = real.tokens.issue(real.tokens.publisher, [f"repository:{repository}:pull,push"])
    assert issued is not None
    rights = {"Authorization": f"Bearer {issued.token}"}
    async with plain_client(base_url=f"http://{real.private.name}", timeout=20, headers=rights) as client:
        for blob in blobs:
            location = (await client.post(f"/v2/{repository}/blobs/uploads/")).headers["Location"]
            url = httpx.URL(location).copy_merge_params({"digest": str(Digest.of(blob))})
            headers = {"Content-Type": "application/octet-stream"}
            assert (await client.put(url, content=blob, headers=headers)).status_code == 201
        path, headers = f"/v2/{repository}/manifests/{Digest.of(data)}", {"Content-Type": media_type}
        return (await client.put(path, content=data, headers=headers)).status_code


async def test_the_registry_takes_no_manifest_that_refers_to_the_layer_of_another_repository(real: Registries) -> None:
    """A grant for a manifest holds for what it refers to, so it must not be a way to the layers of others."""
    image = real.image.image
    descriptors = [{"digest": each.digest, "size": each.size} for each in (image.config, *image.layers)]
    document = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": descriptors[0], "layers": descriptors[1:]}
    data = json.dumps(document).encode()
    assert await push(real, "team/app", data) == 201
    assert await push(real, "team/other", data) in {400, 404}


SMUGGLED = {
    "another list": '"layers": [OWN], "blobs": [SECRET]',
    "schema 1": '"layers": [OWN], "fsLayers": [{"blobSum": "SECRET_DIGEST"}]',
    "an index": '"layers": [OWN], "manifests": [SECRET]',
    "twice": '"layers": [SECRET], "layers": [OWN]',
    "in another case": '"layers": [SECRET], "Layers": [OWN]',
    "with another letter": '"layers": [SECRET], "layer\\u017f": [OWN]',
    "two digests": '"layers": [{"mediaType": "LAYER", "size": 3, "digest": "SECRET_DIGEST", "Digest": "OWN_DIGEST"}]',
    "urls": '"layers": [{"mediaType": "LAYER", "size": 3, "digest": "SECRET_DIGEST", "URLs": ["https://x.example/y"]}]',
}


@pytest.mark.parametrize("media_type", [OCI_MANIFEST, DOCKER_MANIFEST])
async def test_what_the_registry_does_not_look_for_is_not_granted(real: Registries, media_type: str) -> None:
    """The registry takes such manifests, although the repository does not have the layer of another one."""
    secret, own = real.image.image.layers[0].digest, Digest.of(b"own")
    is_oci = media_type == OCI_MANIFEST
    layer = "application/vnd.oci.image.layer.v1.tar" if is_oci else "application/vnd.docker.image.rootfs.diff.tar.gzip"
    entries = {each: f'{{"mediaType": "{layer}", "size": 3, "digest": "{each}"}}' for each in (own, secret)}
    taken = set[str]()
    for name, fields in SMUGGLED.items():
        text = fields.replace("SECRET_DIGEST", secret).replace("OWN_DIGEST", own).replace("LAYER", layer)
        text = text.replace("SECRET", entries[secret]).replace("OWN", entries[own])
        head = f'"schemaVersion": 2, "mediaType": "{media_type}", "config": {entries[own]}'
        data = f"{{{head}, {text}}}".encode()
        if await push(real, "team/other", data, media_type, [b"own"]) == 201:
            taken.add(name)
        with suppress(ValueError):
            children = checked_children_of(data)
            assert secret not in {*children.manifests, *children.blobs}, name
    assert taken >= {"another list", "schema 1", "twice", "in another case", "with another letter", "two digests"}


async def test_a_registry_with_passwords_answers_by_them(real: Registries) -> None:
    async with UpstreamClient(PATIENT, roots=HERE) as client:
        challenge = await client.challenge(real.basic.name)
        assert not isinstance(challenge, Unreachable)
        assert challenge is not None
        assert challenge.is_basic
        question = Question(real.basic.name, "team/app", Endpoint.MANIFEST, "v1")
        assert isinstance(await client.ask(question), Challenged)
        publisher = basic_header(Htpasswd(real.basic.storage).publisher)
        assert isinstance(await client.ask(replace(question, authorization=publisher)), Readable)
        wrong = basic_header(Credentials("publisher", "wrong"))
        assert isinstance(await client.ask(replace(question, authorization=wrong)), Challenged)


async def test_tags_are_listed_with_a_token(real: Registries) -> None:
    question = replace(real.question("team/app"), endpoint=Endpoint.TAGS, reference="list")
    async with UpstreamClient(PATIENT, roots=HERE) as client:
        assert isinstance(await client.fetch(question), Challenged)
        answer = await client.fetch(replace(question, authorization=real.token("team/app")))
    assert isinstance(answer, Fetched)
    assert json.loads(answer.pages[0])["tags"] == ["v1"]


async def test_the_resolver_asks_the_registry_once_with_the_token_of_the_runtime(real: Registries) -> None:
    resolver, reference = UpstreamResolver(), Reference(real.private.name, "team/app", "v1")
    async with (
        UpstreamClient(PATIENT, roots=HERE) as client,
        context_for(resolver, upstream=client) as context,
        resolver.run(context),
    ):
        position = real.private.log_position()
        with pytest.raises(AuthorizationRequired) as caught:
            await resolver.resolve_for(reference, Requester())
        assert 'scope="repository:team/app:pull"' in caught.value.challenge
        for _ in range(3):
            resolution = await resolver.resolve_for(reference, Requester(real.token("team/app")))
            assert resolution is not None
            assert resolution.descriptor.digest == real.image.image.target.digest
        asked = [each.method for each in real.private.requests(position)]
    assert asked == ["GET", "HEAD"]


async def test_fifty_hosts_ask_once_each_and_for_a_tag_that_they_share_once_in_total(real: Registries) -> None:
    """Each host is asked by two runtimes at the same time, with its own token. What it said once is then remembered."""
    registry, number = real.private.name, 50
    manifests = {
        Reference(registry, each.repository, "before"): (
            real.directory / "image/blobs/sha256" / each.image.target.digest.encoded
        ).read_bytes()
        for each in (real.image, real.public)
    }
    limits = httpx.Limits(max_connections=4 * number, max_keepalive_connections=0)
    async with (
        many_hosts(number, manifests, [f"{registry}/team/*"]) as doors,
        plain_client(timeout=300, limits=limits, trust_env=False) as client,
    ):
        tokens = [real.token("team/app", "open/app") for _ in doors]

        async def start(repository: str) -> list[int]:
            """Return the statuses of all answers to a request for the tag v1."""
            path = f"/v2/{repository}/manifests/v1?ns={registry}"
            asking = (
                client.head(f"{door}{path}", headers={"Authorization": token})
                for door, token in zip(doors, tokens, strict=True)
                for _ in range(2)
            )
            return [each.status_code for each in await asyncio.gather(*asking)]

        for repository, expected in (("open/app", 1), ("team/app", number)):
            position = real.private.log_position()
            for _ in range(2):
                assert await start(repository) == [200] * (2 * number)
            asked = real.private.requests(position)
            assert [each.method for each in asked] == ["HEAD"] * expected, asked[:3]
