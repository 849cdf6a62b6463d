"""What others write may have any shape. Each parser raises only the errors that it declares."""

from __future__ import annotations

import base64
import json
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.strategies import DIGESTS, JSON, documents

from peili.adapters.containerd import HostsFiles
from peili.mirror import Digest, Peer, Reference, detect_media_type
from peili.mirror.inspection.parts import children
from peili.mirror.oci.checked_children import checked_children_of
from peili.mirror.oci.children import all_children_of, children_of
from peili.mirror.oci.requests import Endpoint
from peili.mirror.peer_api.directory import HoldersAnswer, HoldersQuery, Holdings
from peili.mirror.peer_api.images import ImageNames
from peili.mirror.peer_api.keys import InFlight, parse_holder
from peili.mirror.peer_api.leases import AcquireQuery, LeaseReports, LeasesAnswer, parse_acquire_answer
from peili.mirror.peer_api.received import parse_received
from peili.mirror.peer_api.tags import TagAnswer, parse_told, parse_within
from peili.mirror.relay.known_sizes import KnownSizes
from peili.mirror.rights.credentials import expiry_of
from peili.mirror.upstream.answers import (
    Question,
    blob_of,
    manifest_of,
    media_type_of,
    next_page,
    read_manifest_of,
    refusal,
)
from peili.mirror.upstream.exchanges import RegistryReply
from peili.routers.kubernetes.slices import label_of, read_slice
from peili.stores.containerd.listing import parse_event, parse_target
from peili.stores.containerd.protos import api_pb2 as pb
from peili.stores.oci_layout.scanner import parse_index, parse_manifest

DIGEST = Digest.of(b"")
IMAGE = ["schemaVersion", "mediaType", "config", "layers", "fsLayers", "blobs", "manifests", "subject"]
MESSAGE = [
    "session",
    "sequence",
    "interval",
    "homes",
    "synced",
    "have",
    "gone",
    "rate",
    "key",
    "known",
    "holders",
    "version",
    "hosts",
    "offset",
    "size",
    "share",
    "failed",
    "final",
    "feed",
    "wait",
    "upstream",
    "home",
    "report",
    "leases",
    "superseded",
    "attempts",
    "told",
    "image",
    "images",
    "total",
]
HEADERS = [
    "docker-content-digest",
    "content-type",
    "content-length",
    "content-range",
    "link",
    "retry-after",
    "location",
    "peili-complete",
    "peili-available",
    "peili-size",
    "peili-path",
    "peili-waiting",
]
_VALUES = st.one_of(
    st.text(st.characters(max_codepoint=255, exclude_characters="\r\n\0"), max_size=40),
    st.sampled_from(["0", "9" * 400, "-1", "true", "false", "http://[", "upstream", "bytes 0-0/9", "text/html"]),
    st.sampled_from(["Mon, 99 Foo 99999 99:99:99 +9999", '<http://[>; rel="next"', '</v2/\udcff>; rel="next"']),
    DIGESTS,
)
_HEADERS = st.fixed_dictionaries({}, optional=dict.fromkeys(HEADERS, _VALUES))

Read = Callable[[bytes], Any]


def _parse_query(data: bytes) -> AcquireQuery:
    return AcquireQuery.parse(data, "host")


@pytest.mark.parametrize("read", [children_of, all_children_of, checked_children_of, parse_index, parse_manifest])
@given(documents(*IMAGE))
def test_a_manifest(read: Callable[..., Any], data: bytes) -> None:
    with suppress(ValueError):
        _ = read(data, "linux/amd64") if read is children_of else read(data)


@given(documents(*IMAGE))
def test_a_manifest_that_is_looked_at_in_passing(data: bytes) -> None:
    detect_media_type(data)
    for part in children(data):
        json.dumps(part.json(lambda peer: peer.id)).encode()
    KnownSizes().add_manifest(data)


_MESSAGES: list[Read] = [
    Holdings.parse,
    HoldersQuery.parse,
    HoldersAnswer.parse,
    LeaseReports.parse,
    LeasesAnswer.parse,
    parse_acquire_answer,
    parse_received,
    TagAnswer.parse,
    ImageNames.parse,
    _parse_query,
]


@pytest.mark.parametrize("read", _MESSAGES)
@settings(max_examples=30)
@given(documents(*MESSAGE))
def test_a_message_of_a_peer(read: Read, data: bytes) -> None:
    with suppress(ValueError):
        _ = read(data)


@settings(max_examples=40)
@given(_HEADERS, st.text(max_size=40))
def test_the_headers_and_parameters_of_a_peer(headers: dict[str, str], text: str) -> None:
    for key in (DIGEST, Reference("r.example", "a", "b")):
        parse_holder(Peer("p", ("http://127.0.0.1:1",)), key, 200, headers)
    for read in (lambda: InFlight.parse(headers), lambda: parse_told(text), lambda: parse_within(text)):
        with suppress(ValueError):
            _ = read()


@given(_HEADERS, documents(*IMAGE), st.sampled_from([200, 206, 401, 429, 503, 999]), st.sampled_from([DIGEST, "v1"]))
def test_an_answer_of_a_registry(headers: dict[str, str], body: bytes, status: int, reference: str) -> None:
    reply = RegistryReply(status, headers, tuple(headers.values()), body)
    question = Question("r.example", "a", Endpoint.MANIFEST, reference)
    refusal(reply)
    for read in (manifest_of, read_manifest_of, blob_of):
        with suppress(ValueError):
            _ = read(reply, question)
    with suppress(ValueError):
        _ = media_type_of(reply)
    with suppress(ValueError):
        _ = next_page(reply, "https://r.example/v2/a/tags/list")


@settings(max_examples=40)
@given(documents("exp") | st.binary())
def test_a_token(claims: bytes) -> None:
    expiry_of(f"a.{base64.urlsafe_b64encode(claims).decode()}.b")
    expiry_of(f"a.{claims.decode('latin-1')}.b")


@settings(max_examples=40)
@given(JSON, JSON)
def test_a_slice_of_kubernetes(endpoint: Any, port: Any) -> None:
    item = {"addressType": "IPv4", "endpoints": [endpoint], "ports": [port], "metadata": endpoint}
    slices: list[dict[str, Any]] = [item, {**item, "addressType": endpoint}]
    for each in slices:
        for number in (None, 5050):
            read_slice(each, number)
        label_of(each, "zone")


@settings(max_examples=40)
@given(st.text(max_size=20), DIGESTS | st.text(max_size=20), st.integers(-(2**63), 2**63 - 1), st.binary(max_size=40))
def test_an_image_and_an_event_of_containerd(text: str, digest: str, size: int, event: bytes) -> None:
    image = pb.Image(name=text)
    image.target.media_type, image.target.digest, image.target.size = text, digest, size
    parse_target(image)
    for topic in ("/images/delete", "/content/create", "/namespaces/create", text):
        envelope = pb.Envelope(namespace=text, topic=topic)
        envelope.event.value = event
        parse_event(envelope)


_TOML_NAMES = st.sampled_from(
    ["server", "host", "capabilities", "ca", "client", "skip_verify", "header", "override_path", "dial_timeout"]
)
_TOML = st.recursive(
    st.booleans()
    | st.integers(-9, 9)
    | st.sampled_from(["", "/x", "http://[", "https://r.example", "\x00", "http://a:b"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(_TOML_NAMES, inner, max_size=4),
    max_leaves=8,
)
_HOSTS_TOML = st.fixed_dictionaries(
    {},
    optional={
        "server": _TOML,
        "host": st.dictionaries(st.sampled_from(["https://r.example", "http://[", "", "x"]), _TOML, max_size=2) | _TOML,
        "ca": _TOML,
        "client": _TOML,
        "header": _TOML,
    },
)


@settings(max_examples=60)
@given(_HOSTS_TOML, st.sampled_from(["1.6.20", "1.7.27", "2.0.0", "2.2.0", None]))
def test_a_hosts_toml(document: dict[str, Any], version: str | None) -> None:
    text = "\n".join(f"{name} = {_toml(value)}" for name, value in document.items())
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "r.example/hosts.toml"
        file.parent.mkdir()
        file.write_bytes(text.encode())
        files = HostsFiles("http://127.0.0.1:5050", config_path=[name], registries=["r.example"], version=version)
        assert files.upstream_roots("r.example")


def _toml(value: object) -> str:
    if isinstance(value, dict):
        items = cast("dict[str, object]", value).items()
        return "{" + ", ".join(f"{json.dumps(key)} = {_toml(each)}" for key, each in items) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, cast("list[object]", value))) + "]"
    return json.dumps(value)
