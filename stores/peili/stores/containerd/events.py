"""Reads containerd's events, as far as they say something about content and images. What follows is `follower`'s."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from google.protobuf.message import DecodeError

from peili.mirror import Digest, Reference
from peili.stores.containerd.listing import parse_digest, parse_reference
from peili.stores.containerd.protos import api_pb2 as pb

FILTER = 'topic~="^/(images|content|namespaces)/"'
"""Keeps events of containers, tasks and snapshots, of which there are many, out of the stream."""


@dataclass(frozen=True, slots=True)
class Untagged:
    """The image called `reference` is gone from `namespace`; its content may be removed some time later."""

    namespace: str
    reference: Reference


@dataclass(frozen=True, slots=True)
class Created:
    """A blob is whole. Only containerd ≥ 2.1 says so."""

    namespace: str
    digest: Digest
    size: int


@dataclass(frozen=True, slots=True)
class Changed:
    """Something is, or soon will be, not as it was: listing will tell what. An empty `namespace`: in any of them."""

    namespace: str


Event: TypeAlias = Untagged | Created | Changed


def read_event(envelope: pb.Envelope) -> Event:
    """What `envelope` says. Whatever can't be read for certain is `Changed`. Never raises."""
    try:
        match envelope.topic:
            case "/images/delete":
                reference = parse_reference(pb.ImageEvent.FromString(envelope.event.value).name)
                if reference is not None:
                    return Untagged(envelope.namespace, reference)
            case "/content/create":
                event = pb.ContentEvent.FromString(envelope.event.value)
                digest = parse_digest(event.digest)
                if digest is not None:
                    return Created(envelope.namespace, digest, event.size)
            case topic if topic.startswith("/namespaces/"):
                return Changed("")
            case _:
                pass
    except DecodeError:
        pass
    return Changed(envelope.namespace)
