"""`UpstreamClient` asks registries over real sockets."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace
from email.utils import formatdate
from pathlib import Path
from urllib.parse import parse_qs

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send
from tests.mirror.upstream.registries import (
    BY_TAG,
    DIGEST,
    HASTY,
    HEADERS,
    MANIFEST,
    PATIENT,
    READABLE,
    WITH_TOKEN,
    SmallRegistry,
    registries,
)
from tests.support.neighbours import refusing_url, served, served_together
from tests.support.stream_server import stream_server
from tests.support.waiting import until

from peili.mirror import Descriptor, Digest
from peili.mirror.oci.references import OCI_MANIFEST, OCTET_STREAM
from peili.mirror.oci.requests import Endpoint
from peili.mirror.support.threads import DaemonThreads
from peili.mirror.upstream import registries as known_registries
from peili.mirror.upstream.answers import Absent, Answer, Challenged, Denied, Fetched, Readable, Unreachable
from peili.mirror.upstream.api_roots import ApiRoot
from peili.mirror.upstream.challenges import Challenge
from peili.mirror.upstream.client import UpstreamClient
from peili.mirror.upstream.root_client import RootClient

pytestmark = pytest.mark.anyio

BEARER = Challenge("Bearer", {"realm": "https://auth.example/token", "service": "registry.example"})
CHALLENGE = {"WWW-Authenticate": str(BEARER)}
OTHER = Digest.of(b"other")
BLOB = replace(BY_TAG, endpoint=Endpoint.BLOB, reference=str(OTHER), authorization="Bearer secret")
TAGS = replace(BY_TAG, endpoint=Endpoint.TAGS, reference="list")
PATH = "/v2/acme/demo/manifests/v1"


async def test_a_mirror_is_told_in_each_request_which_registry_is_meant_as_containerd_tells_it() -> None:
    own, mirror = SmallRegistry(), SmallRegistry(404)
    tags = "/v2/acme/demo/tags/list"
    mirror.answers[tags] = (200, {"Link": f'<{tags}-2?last=a>; rel="next"'}, b"{}")
    mirror.answers[f"{tags}-2"] = (200, {"Link": f'<{tags}-3?ns=registry.example%3A5000&last=b>; rel="next"'}, b"{}")
    mirror.answers[f"{tags}-3"] = (200, {"Link": f'<{tags}-4>; rel="next"'}, b"{}")
    mirror.answers[f"{tags}-4"] = (200, {}, b"{}")
    async with registries(mirror, own):
        roots = [replace(mirror.root, is_mirror=True), own.root]
        async with UpstreamClient(PATIENT, roots=lambda _: roots) as client:
            question = replace(BY_TAG, registry="registry.example:5000")
            assert await client.ask(question) == READABLE
            await client.challenge(question.registry)
            mirror.answers["/v2/"] = own.answers["/v2/"] = (401, CHALLENGE, b"")
            await client.ask(question)
            assert isinstance(
                await client.fetch(replace(TAGS, registry=question.registry, authorization=None)), Fetched
            )
    assert {path for _, path, _ in mirror.asked} >= {PATH, "/v2/", *mirror.answers}
    assert [parse_qs(each)["ns"] for each in mirror.queries] == [[question.registry]] * len(mirror.queries)
    assert set(own.queries) == {""}


async def test_a_root_that_is_no_longer_configured_is_not_asked_and_gets_no_token(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(known_registries, "_ROOTS_TTL", 0.0)
    gone, mirror, own = SmallRegistry(401, CHALLENGE), SmallRegistry(404), SmallRegistry()
    own.answers["/v2/"] = (404, {}, b"")
    async with registries(gone, mirror, own):
        roots = [gone.root, own.root]
        async with UpstreamClient(PATIENT, roots=lambda _: roots) as client:
            assert await client.challenge("registry.example") == BEARER
            roots[:] = [mirror.root, own.root]
            challenge = replace(BEARER, parameters={"realm": "https://other.example/token"})
            own.answers["/v2/"] = (401, {"WWW-Authenticate": str(challenge)}, b"")
            gone.asked.clear()
            gone.default = (503, {}, b"")
            assert await client.check("registry.example") is None
            assert await client.challenge("registry.example") == challenge
            assert await client.ask(WITH_TOKEN) == READABLE
    assert gone.asked == []
    assert [each for each in mirror.asked if each[2]] == []
    assert ("HEAD", PATH, "Bearer secret") in own.asked


async def test_nothing_is_opened_when_a_client_is_closed_while_it_is_being_made_ready() -> None:
    registry, may_go_on, threads = SmallRegistry(), threading.Event(), DaemonThreads(1, "test")
    async with served(registry) as url:
        client = RootClient(PATIENT, threads, logging.getLogger("peili.test"))
        client.open()
        busy = threads.run(may_go_on.wait)  # the only thread
        asking = asyncio.create_task(client.ask(ApiRoot.of(url), BY_TAG))
        await asyncio.sleep(0)
        await client.aclose()
        may_go_on.set()
        await busy
        answer = await asking
        assert isinstance(answer, Unreachable)
        assert not answer.was_asked
        assert client._transport is None  # pyright: ignore[reportPrivateUsage]
        assert registry.asked == []
        client.open()
        assert await client.ask(ApiRoot.of(url), BY_TAG) == READABLE
        await client.aclose()


@pytest.mark.parametrize(
    ("status", "headers", "expected"),
    [
        (200, HEADERS, READABLE),
        (200, {**HEADERS, "Content-Type": f"{OCI_MANIFEST}; charset=utf-8"}, READABLE),
        (200, {"Content-Type": OCI_MANIFEST}, READABLE),  # without a digest, which is then calculated
        (401, CHALLENGE, Challenged(BEARER)),
        (401, {}, Denied("401 without a challenge")),
        (403, {}, Denied("it answered 403")),
        (404, {}, Absent()),
        (429, {"Retry-After": "7"}, Unreachable("it answered 429", 7, is_down=False)),
        (429, {}, Unreachable("it answered 429", is_down=False)),
        (503, {"Retry-After": "later"}, Unreachable("it answered 503")),
        (200, {**HEADERS, "Docker-Content-Digest": "sha256:1"}, Denied),
        (200, {**HEADERS, "Content-Type": "no type"}, Denied),
        (200, {"Content-Type": "text/html"}, READABLE),  # its body shows what it is
        (302, {}, Denied("it answered 302")),
        (307, {"Location": "/v2/"}, READABLE),
        (307, {"Location": PATH}, Denied),  # it never ends
        (307, {"Location": "file:///etc/passwd"}, Denied),
    ],
)
async def test_each_response_has_a_meaning(status: int, headers: dict[str, str], expected: Answer | type) -> None:
    registry = SmallRegistry()
    registry.answers[PATH] = (status, headers, MANIFEST)
    async with registries(registry) as client:
        answer = await client.ask(BY_TAG)
    assert answer == expected or (isinstance(expected, type) and isinstance(answer, expected)), answer


async def test_another_digest_than_the_one_that_was_asked_for_is_refused() -> None:
    async with registries(SmallRegistry()) as client:
        assert isinstance(await client.ask(replace(BY_TAG, reference=str(OTHER))), Denied)
        assert await client.ask(replace(BY_TAG, reference=str(DIGEST))) == READABLE


async def test_the_registry_is_asked_for_manifests_with_the_requesters_rights() -> None:
    registry = SmallRegistry()
    async with registries(registry) as client:
        await client.ask(WITH_TOKEN)
    assert registry.asked == [("HEAD", PATH, "Bearer secret")]
    assert "secret" not in repr(WITH_TOKEN)


async def test_a_redirect_to_another_host_does_not_get_the_rights() -> None:
    registry, other = SmallRegistry(), SmallRegistry()
    async with registries(registry) as client, served(other) as url:
        registry.answers[PATH] = (307, {"Location": "/v2/acme/moved"}, b"")
        registry.answers["/v2/acme/moved"] = (307, {"Location": f"{url}/there?signature=s"}, b"")
        assert await client.ask(WITH_TOKEN) == READABLE
    assert [each[2] for each in registry.asked] == ["Bearer secret"] * 2
    assert other.asked == [("HEAD", "/there", None)]


async def test_configured_headers_are_for_the_registry_alone() -> None:
    """They may be credentials. A redirect of a manifest and one of a blob lead to another host without them."""
    registry, other = SmallRegistry(), SmallRegistry()
    seen: list[tuple[str, str | None, str | None]] = []

    def noting(name: str, app: ASGIApp) -> ASGIApp:
        async def note(scope: Scope, receive: Receive, send: Send) -> None:
            headers = Request(scope).headers
            seen.append((name, headers.get("x-key"), headers.get("authorization")))
            await app(scope, receive, send)

        return note

    async with served(noting("registry", registry)) as url, served(noting("other", other)) as elsewhere:
        root = ApiRoot.of(url, headers={"X-Key": "secret", "Authorization": "Basic secret"})
        assert "secret" not in repr(root)
        other.default = (200, {"Content-Type": OCTET_STREAM}, b"other")
        other.answers["/manifest"] = (200, HEADERS, MANIFEST)
        registry.answers[PATH] = (307, {"Location": "/v2/acme/moved"}, b"")
        registry.answers["/v2/acme/moved"] = (307, {"Location": f"{elsewhere}/manifest"}, b"")
        registry.answers[f"/v2/acme/demo/blobs/{OTHER}"] = (307, {"Location": f"{elsewhere}/blob"}, b"")
        async with UpstreamClient(PATIENT, roots=lambda _: [root]) as client:
            assert await client.ask(BY_TAG) == READABLE
            assert isinstance(await client.ask(replace(BLOB, authorization=None)), Readable)
    assert {each[1:] for each in seen if each[0] == "registry"} == {("secret", "Basic secret")}
    assert {each[1:] for each in seen if each[0] == "other"} == {(None, None)}


async def test_what_may_be_secret_is_not_in_the_log_of_any_library(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    registry, other = SmallRegistry(), SmallRegistry()
    async with registries(registry) as client, served(other) as url:
        registry.answers["/v2/"] = (401, {"WWW-Authenticate": 'Bearer realm="x",nonce="SECRET-1"'}, b"")
        registry.default = (307, {"Location": f"{url}/SECRET-2?signature=SECRET-3", "Set-Cookie": "id=SECRET-4"}, b"")
        other.default = (200, {"Content-Type": OCTET_STREAM, "X-Key": "SECRET-5"}, b"other")
        assert isinstance(await client.ask(replace(BLOB, authorization="Bearer SECRET-6")), Readable)
        assert isinstance(await client.ask(replace(BY_TAG, authorization="Basic SECRET-7")), Denied | Readable)
        assert isinstance(await client.challenge("registry.example"), Challenge)
    for name, what in (("httpx", f"HEAD {url} "), ("httpcore.http11", "receive_response_headers.complete")):
        assert any(each.name == name and what in each.getMessage() for each in caplog.records)
    assert "SECRET" not in caplog.text


async def test_the_reason_of_an_error_shows_nothing_of_a_malformed_response() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nSECRET\r\n\r\n")
        await writer.drain()

    async with stream_server(answer) as port:
        root = ApiRoot.of(f"http://127.0.0.1:{port}")
        async with UpstreamClient(PATIENT, roots=lambda _: [root]) as client:
            answered = await client.ask(BY_TAG)
    assert isinstance(answered, Unreachable)
    assert answered.why.startswith("RemoteProtocolError")
    assert "SECRET" not in answered.why


@pytest.mark.parametrize("page", [b"<html>", b'{"error": "log in"}', b"[]", MANIFEST[:-1]])
async def test_a_page_where_people_log_in_is_neither_a_manifest_nor_a_blob(page: bytes) -> None:
    kind = "text/html" if page.startswith(b"<") else "application/json"
    async with registries(SmallRegistry(200, {"Content-Type": kind}, page)) as client:
        for question in (BY_TAG, replace(BY_TAG, reference=str(DIGEST)), BLOB, replace(BLOB, size=len(page) + 1)):
            assert isinstance(await client.ask(question), Denied)


@pytest.mark.parametrize("methods", [{"HEAD", "GET"}, {"HEAD"}, {"GET"}])
async def test_a_blob_is_found_at_the_host_where_the_registry_sends_to_without_the_rights(methods: set[str]) -> None:
    """An address that is signed for one method is refused for another one."""
    storage = Storage(methods)
    async with storage.with_registry() as (client, registry):
        assert await client.ask(BLOB) == Readable(Descriptor(OCTET_STREAM, OTHER, len(storage.data)))
        assert isinstance(await client.ask(replace(BLOB, size=len(storage.data))), Readable)
        assert isinstance(await client.ask(replace(BLOB, size=len(storage.data) - 1)), Denied)
    assert {each[2] for each in registry.asked} == {"Bearer secret"}
    assert set(storage.authorizations) == {None}


@pytest.mark.parametrize(
    ("methods", "kind", "expected"),
    [
        ({"HEAD", "GET"}, "text/html", Denied),
        ({"HEAD", "GET"}, "application/json", Denied),
        (set[str](), OCTET_STREAM, Denied),
    ],
)
async def test_a_redirect_to_something_else_is_no_yes(methods: set[str], kind: str, expected: type) -> None:
    async with Storage(methods, kind).with_registry() as (client, _):
        assert isinstance(await client.ask(BLOB), expected)


class Storage:
    """Storage that has one object, and takes only some methods; and a registry that sends everybody there."""

    def __init__(self, methods: set[str], kind: str = OCTET_STREAM) -> None:
        self.data = b"object"
        self.authorizations: list[str | None] = []
        self._methods = methods
        self._kind = kind

    async def _object(self, request: Request) -> Response:
        self.authorizations.append(request.headers.get("authorization"))
        if request.method not in self._methods:
            return Response("<Error>SignatureDoesNotMatch</Error>", 403)
        if request.headers.get("range") == "bytes=0-0":
            return Response(self.data[:1], 206, {"Content-Range": f"bytes 0-0/{len(self.data)}"}, self._kind)
        return Response(self.data, media_type=self._kind)

    @asynccontextmanager
    async def with_registry(self) -> AsyncGenerator[tuple[UpstreamClient, SmallRegistry]]:
        registry = SmallRegistry()
        routes = [Route("/signed", self._object, methods=["GET", "HEAD"])]
        async with registries(registry) as client, served(Starlette(routes=routes)) as url:
            registry.default = (307, {"Location": f"{url}/signed"}, b"")
            yield client, registry


async def test_a_registry_that_does_not_answer_in_time_is_unreachable() -> None:
    registry = SmallRegistry()
    registry.open.clear()
    async with registries(registry, limits=HASTY) as client:
        assert await client.ask(BY_TAG) == Unreachable("no answer in 0.2 s")
        assert isinstance(await client.challenge("registry.example"), Unreachable)


async def test_the_questions_at_the_same_time_are_bounded() -> None:
    registry = SmallRegistry()
    registry.open.clear()
    async with registries(registry, limits=replace(PATIENT, upstream_requests=4)) as client:
        asking = [asyncio.create_task(client.ask(BY_TAG)) for _ in range(5)]
        await until(lambda: len(registry.asked) == 2)
        registry.open.set()
        assert await asyncio.gather(*asking) == [READABLE] * 5
    assert registry.most_at_once == 2  # the other half is for other registries


async def test_a_registry_that_hangs_does_not_take_the_slots_of_others() -> None:
    silent, registry = SmallRegistry(), SmallRegistry()
    silent.open.clear()
    async with served(silent) as url, served(registry) as other:
        roots = {"silent.example": url, "registry.example": other}
        limits = replace(PATIENT, upstream_requests=4)
        async with UpstreamClient(limits, roots=lambda name: [ApiRoot.of(roots[name])]) as client:
            waiting = [asyncio.create_task(client.ask(replace(BY_TAG, registry="silent.example"))) for _ in range(9)]
            await until(lambda: len(silent.asked) == 2)
            assert await client.ask(BY_TAG) == READABLE
            silent.open.set()
            await asyncio.gather(*waiting)


@pytest.mark.parametrize("has_mirror", [False, True])
async def test_registries_that_nobody_has_configured_take_no_slot_of_a_configured_one(
    monkeypatch: pytest.MonkeyPatch, has_mirror: bool
) -> None:
    """Also if there is a mirror for all registries that nobody has configured."""
    silent, registry, mirror = SmallRegistry(), SmallRegistry(), SmallRegistry(404)
    silent.open.clear()
    async with served_together(silent, registry, mirror) as (proxy, url, default):
        monkeypatch.setenv("HTTP_PROXY", proxy)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")

        def find(name: str) -> list[ApiRoot]:
            if name == "registry.example":
                return [ApiRoot.of(url)]
            own = ApiRoot.of(f"http://{name}", is_assumed=True, is_default=has_mirror)
            return [ApiRoot.of(default, is_default=True), own] if has_mirror else [own]

        async with UpstreamClient(replace(PATIENT, upstream_requests=2), roots=find) as client:
            waiting = [
                asyncio.create_task(client.ask(replace(BY_TAG, registry=f"{n}.silent.example"))) for n in range(4)
            ]
            await until(lambda: len(silent.asked) == 2)
            assert await client.ask(BY_TAG) == READABLE
            silent.open.set()
            await asyncio.gather(*waiting)


async def test_waiting_for_a_free_connection_counts() -> None:
    registry = SmallRegistry()
    registry.open.clear()
    async with registries(registry, limits=replace(HASTY, upstream_requests=1)) as client:
        answers = await asyncio.gather(*(client.ask(BY_TAG) for _ in range(5)))
    assert all(isinstance(each, Unreachable) for each in answers)


async def test_nobody_there_or_not_running_is_unreachable() -> None:
    client = UpstreamClient(PATIENT, roots=lambda _: [ApiRoot.of(refusing_url())])
    assert await client.ask(BY_TAG) == Unreachable("this mirror is not running", is_down=False, was_asked=False)
    async with client:
        assert isinstance(await client.ask(BY_TAG), Unreachable)
    assert isinstance(await client.ask(BY_TAG), Unreachable)


async def test_a_registry_whose_api_is_not_found_is_unreachable(caplog: pytest.LogCaptureFixture) -> None:
    def fail(registry: str) -> list[ApiRoot]:
        raise RuntimeError(f"no file for {registry}")

    async with UpstreamClient(PATIENT, roots=fail) as client:
        assert isinstance(await client.ask(BY_TAG), Unreachable)
        assert isinstance(await client.fetch(TAGS), Unreachable)
    assert "where its API is could not be found out" in caplog.text


@pytest.mark.parametrize(
    ("status", "headers", "expected"),
    [(200, {}, None), (401, CHALLENGE, BEARER), (401, {"WWW-Authenticate": "Negotiate"}, None), (404, {}, None)],
)
async def test_a_registry_is_asked_once_how_it_challenges(
    status: int, headers: dict[str, str], expected: Challenge | None
) -> None:
    registry = SmallRegistry(status, headers)
    async with registries(registry) as client:
        assert await asyncio.gather(*(client.challenge("registry.example") for _ in range(5))) == [expected] * 5
        assert await client.challenge("Registry.Example") == expected
    assert registry.asked == [("GET", "/v2/", None)]


async def test_how_a_registry_challenges_is_asked_again_after_a_failure() -> None:
    registry = SmallRegistry(503)
    async with registries(registry) as client:
        assert isinstance(await client.challenge("registry.example"), Unreachable)
        registry.default = (401, CHALLENGE, b"")
        assert await client.challenge("registry.example") == BEARER


async def test_a_registry_that_wants_no_request_gets_none() -> None:
    registry = SmallRegistry(429, {"Retry-After": formatdate(time.time() + 100, usegmt=True)})
    async with registries(registry) as client:
        assert isinstance(await client.ask(BY_TAG), Unreachable)
        again = await client.ask(BY_TAG)
        assert len(registry.asked) == 1
        assert isinstance(again, Unreachable)
        assert again.retry_after is not None
        await client.ask(WITH_TOKEN)  # another requester may be welcome
        assert len(registry.asked) == 2
        assert await client.check("registry.example") is not None  # but not if nobody is
        await client.ask(replace(WITH_TOKEN, authorization="Bearer other"))
        assert len(registry.asked) == 3


async def test_a_registry_is_checked_without_the_rights_and_the_slots_of_requesters() -> None:
    registry = SmallRegistry()
    registry.open.clear()
    async with registries(registry, limits=replace(PATIENT, upstream_requests=1)) as client:
        waiting = [asyncio.create_task(client.ask(WITH_TOKEN)) for _ in range(3)]
        await until(lambda: len(registry.asked) == 1)
        checking = asyncio.create_task(client.check("registry.example"))
        await until(lambda: len(registry.asked) == 2)
        registry.open.set()
        assert await checking is None
        await asyncio.gather(*waiting)
        assert registry.asked[1] == ("GET", "/v2/", None)
        for status, is_down in ((401, None), (404, None), (503, True), (429, False)):
            registry.default = (status, {}, b"")
            answer = await client.check("registry.example")
            assert (None if answer is None else answer.is_down) is is_down


async def test_the_mirrors_of_a_registry_are_asked_first() -> None:
    mirror, registry = SmallRegistry(404), SmallRegistry()
    async with registries(mirror, registry) as client:
        assert await client.ask(BY_TAG) == READABLE
        mirror.default = (500, {}, b"")
        assert await client.ask(BY_TAG) == READABLE
        mirror.default = (200, HEADERS, MANIFEST)
        assert await client.ask(BY_TAG) == READABLE
    assert (mirror.heads, registry.heads) == (3, 2)


async def test_a_token_is_only_for_the_root_that_challenged() -> None:
    mirror, registry = SmallRegistry(404), SmallRegistry(401, CHALLENGE)
    mirror.answers["/v2/"] = (200, {}, b"")
    async with registries(mirror, registry) as client:
        assert await client.ask(BY_TAG) == Challenged(BEARER)
        registry.default = (200, HEADERS, MANIFEST)
        registry.answers["/v2/"] = (401, CHALLENGE, b"")
        assert await client.ask(WITH_TOKEN) == READABLE
    assert [each[2] for each in mirror.asked if each[2]] == []
    assert registry.asked[-1] == ("HEAD", PATH, "Bearer secret")


async def test_the_pages_of_a_list_are_read() -> None:
    registry = SmallRegistry()
    first, second = b'{"tags": ["a"]}', b'{"tags": ["b"]}'
    registry.answers["/v2/acme/demo/tags/list"] = (200, {"Link": '</v2/page2?n=1&last=a>; rel="next"'}, first)
    registry.answers["/v2/page2"] = (200, {}, second)
    async with registries(registry) as client:
        assert await client.fetch(TAGS) == Fetched((first, second))
        registry.answers["/v2/page2"] = (503, {}, b"")
        assert isinstance(await client.fetch(TAGS), Denied)  # whole or not at all
    async with registries(registry, limits=replace(PATIENT, upstream_answer=len(first))) as client:
        assert isinstance(await client.fetch(TAGS), Denied)


async def test_a_page_at_another_host_is_not_read() -> None:
    registry, other = SmallRegistry(), SmallRegistry()
    async with registries(registry) as client, served(other) as url:
        registry.default = (200, {"Link": f"<{url}/next>; rel=next"}, b"{}")
        assert await client.fetch(replace(TAGS, authorization="Bearer secret")) == Fetched((b"{}",))
    assert other.asked == []


@pytest.mark.parametrize("link", ["http://[", "//[::1", "http://h:port/x"])
async def test_a_page_whose_address_is_malformed_is_missing(link: str) -> None:
    registry = SmallRegistry(200, {"Link": f'<{link}>; rel="next"'}, b"{}")
    async with registries(registry) as client:
        answer = await client.fetch(TAGS)
    assert isinstance(answer, Denied | Fetched)
    assert (answer == Fetched((b"{}",))) == (link == "http://h:port/x")  # that is another host


async def test_a_compressed_answer_is_not_read() -> None:
    registry = SmallRegistry(200, {"Content-Encoding": "gzip"}, b"\x1f\x8b")
    async with registries(registry) as client:
        assert isinstance(await client.fetch(TAGS), Denied)


async def test_a_cookie_is_not_sent_to_the_registry_again() -> None:
    seen: list[str | None] = []
    registry = SmallRegistry()
    registry.default = (200, {**HEADERS, "Set-Cookie": "session=1; Path=/"}, MANIFEST)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(Request(scope).headers.get("cookie"))
        await registry(scope, receive, send)

    async with served(app) as url, UpstreamClient(PATIENT, roots=lambda _: [ApiRoot.of(url)]) as client:
        assert await client.ask(WITH_TOKEN) == READABLE
        assert await client.ask(BY_TAG) == READABLE
    assert seen == [None, None]


async def test_requests_are_counted() -> None:
    registry = SmallRegistry()
    counted: Counter[tuple[str, str]] = Counter()
    async with served(registry) as url:

        def count(endpoint: str, answer: str) -> None:
            counted[endpoint, answer] += 1

        client = UpstreamClient(PATIENT, roots=lambda _: [ApiRoot.of(url)], count=count)
        async with client:
            await client.ask(BY_TAG)
            await client.challenge("registry.example")
            registry.default = (404, {}, b"")
            await client.ask(BLOB)
    assert counted == {("manifests", "readable"): 1, ("base", "fetched"): 1, ("blobs", "absent"): 1}


async def test_proxies_are_used_and_netrc_is_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine registry.example login user password secret\n")
    netrc.chmod(0o600)
    proxy = SmallRegistry()
    async with served(proxy) as url:
        monkeypatch.setenv("NETRC", str(netrc))
        monkeypatch.setenv("HTTP_PROXY", url)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        async with UpstreamClient(PATIENT, roots=lambda name: [ApiRoot.of(f"http://{name}")]) as client:
            assert await client.ask(BY_TAG) == READABLE
            assert isinstance(await client.ask(replace(BY_TAG, registry="127.0.0.1:1")), Unreachable)
    assert [each[2] for each in proxy.asked] == [None]


async def test_a_question_can_be_cancelled_and_asked_again() -> None:
    registry = SmallRegistry()
    registry.open.clear()
    async with registries(registry, limits=replace(PATIENT, upstream_requests=1)) as client:
        asking = asyncio.create_task(client.ask(BY_TAG))
        await until(lambda: bool(registry.asked))
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        registry.open.set()
        assert await client.ask(BY_TAG) == READABLE
