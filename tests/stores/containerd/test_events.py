"""Parsing and applying events, also malformed ones and those that only containerd 2.x sends."""

from __future__ import annotations

import pytest
from google.protobuf.any_pb2 import Any
from hypothesis import given
from hypothesis import strategies as st

from peili.mirror import Descriptor, Digest, Reference
from peili.stores.containerd.listing import (
    Blob,
    BlobCreated,
    ContainerdEvent,
    ImageChanged,
    ImageDeleted,
    Listing,
    NamespaceChanged,
    TaggedImage,
    parse_event,
)
from peili.stores.containerd.protos import api_pb2 as pb

NAME = "docker.io/library/demo:v1"
DEMO = Reference.parse(NAME)
DIGEST = Digest.of(b"some blob")


def envelope(topic: str, event: bytes, namespace: str = "ours") -> pb.Envelope:
    return pb.Envelope(namespace=namespace, topic=topic, event=Any(value=event))


def image_event(topic: str, name: str = NAME) -> pb.Envelope:
    return envelope(topic, pb.ImageEvent(name=name).SerializeToString())


def content_event(topic: str, digest: str = DIGEST) -> pb.Envelope:
    return envelope(topic, pb.ContentEvent(digest=digest, size=9).SerializeToString())


@pytest.mark.parametrize(
    ("message", "event"),
    [
        (image_event("/images/delete"), ImageDeleted("ours", DEMO)),
        (image_event("/images/delete", "sha256:no-tag"), NamespaceChanged("ours")),
        (image_event("/images/create"), ImageChanged("ours", DEMO)),
        (image_event("/images/update"), ImageChanged("ours", DEMO)),
        (content_event("/content/create"), BlobCreated("ours", DIGEST, 9)),
        (content_event("/content/create", "blake3:00"), NamespaceChanged("ours")),
        (content_event("/content/delete"), NamespaceChanged("ours")),
        (envelope("/images/delete", b"\xff\xff"), NamespaceChanged("ours")),
        (envelope("/namespaces/create", b"", namespace="new"), NamespaceChanged("")),
        (envelope("/something/else", b""), NamespaceChanged("ours")),
    ],
)
def test_an_event_is_parsed(message: pb.Envelope, event: ContainerdEvent) -> None:
    assert parse_event(message) == event


@given(topic=st.sampled_from(["/images/delete", "/content/create", "/content/delete"]), event=st.binary())
def test_an_event_with_any_bytes_is_parsed(topic: str, event: bytes) -> None:
    assert parse_event(envelope(topic, event)).namespace == "ours"


def listing() -> Listing:
    return Listing(images={DEMO: TaggedImage(Descriptor("text/plain", DIGEST, 9), "ours")})


def test_a_created_blob_is_listed_at_once() -> None:
    now = listing()
    assert list(now.store_events()) == []
    assert now.apply(BlobCreated("ours", DIGEST, 9), ["ours"])
    assert now.blobs == {DIGEST: Blob(DIGEST, 9, "ours")}
    assert {have.key for have in now.store_events()} == {DIGEST, DEMO}


def test_a_deleted_image_is_gone_at_once() -> None:
    now = listing()
    assert now.apply(ImageDeleted("ours", DEMO), ["ours"])
    assert now.images == {}


def test_an_image_deleted_in_one_namespace_stays_in_the_other() -> None:
    now = listing()
    assert now.apply(ImageDeleted("also-ours", DEMO), ["ours", "also-ours"])
    assert now == listing()


@pytest.mark.parametrize(
    "event", [BlobCreated("theirs", DIGEST, 9), ImageDeleted("theirs", DEMO), NamespaceChanged("theirs")]
)
def test_events_of_other_namespaces_are_ignored(event: ContainerdEvent) -> None:
    now = listing()
    assert not now.apply(event, ["ours"])
    assert now == listing()


def test_a_change_in_any_namespace_requests_a_list() -> None:
    assert listing().apply(NamespaceChanged(""), ["ours"])
