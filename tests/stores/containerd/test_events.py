"""What events mean, also those that only containerd 2.x sends, and that nothing in them can do harm."""

from __future__ import annotations

import pytest
from google.protobuf.any_pb2 import Any
from hypothesis import given
from hypothesis import strategies as st

from peili.mirror import Descriptor, Digest, Reference
from peili.stores.containerd.events import Changed, Created, Event, Untagged, read_event
from peili.stores.containerd.follower import apply
from peili.stores.containerd.listing import Blob, Listing, Tagged
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
    ("told", "event"),
    [
        (image_event("/images/delete"), Untagged("ours", DEMO)),
        (image_event("/images/delete", "sha256:no-tag"), Changed("ours")),
        (image_event("/images/create"), Changed("ours")),
        (image_event("/images/update"), Changed("ours")),
        (content_event("/content/create"), Created("ours", DIGEST, 9)),
        (content_event("/content/create", "blake3:00"), Changed("ours")),
        (content_event("/content/delete"), Changed("ours")),
        (envelope("/images/delete", b"\xff\xff"), Changed("ours")),
        (envelope("/namespaces/create", b"", namespace="new"), Changed("")),
        (envelope("/something/else", b""), Changed("ours")),
    ],
)
def test_an_event_is_read(told: pb.Envelope, event: Event) -> None:
    assert read_event(told) == event


@given(topic=st.sampled_from(["/images/delete", "/content/create", "/content/delete"]), event=st.binary())
def test_whatever_an_event_holds_it_is_read(topic: str, event: bytes) -> None:
    assert read_event(envelope(topic, event)).namespace == "ours"


def listing() -> Listing:
    return Listing(images={DEMO: Tagged(Descriptor("text/plain", DIGEST, 9), "ours")})


def test_a_blob_that_is_said_to_be_whole_is_listed_at_once() -> None:
    now = listing()
    assert list(now.haves()) == []
    assert apply(Created("ours", DIGEST, 9), now, ["ours"])
    assert now.blobs == {DIGEST: Blob(DIGEST, 9, "ours")}
    assert {have.key for have in now.haves()} == {DIGEST, DEMO}


def test_a_deleted_image_is_gone_at_once() -> None:
    now = listing()
    assert apply(Untagged("ours", DEMO), now, ["ours"])
    assert now.images == {}


def test_an_image_deleted_in_one_namespace_stays_in_the_other() -> None:
    now = listing()
    assert apply(Untagged("also-ours", DEMO), now, ["ours", "also-ours"])
    assert now == listing()


@pytest.mark.parametrize("event", [Created("theirs", DIGEST, 9), Untagged("theirs", DEMO), Changed("theirs")])
def test_other_namespaces_do_not_matter(event: Event) -> None:
    now = listing()
    assert not apply(event, now, ["ours"])
    assert now == listing()


def test_a_change_in_any_namespace_matters() -> None:
    assert apply(Changed(""), listing(), ["ours"])
