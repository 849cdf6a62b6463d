"""What is remembered of the answers of registries, and for how long; and what is kept of a token."""

from __future__ import annotations

import base64
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.mirror.rights.registry import token
from tests.support.clock import Clock

from peili.mirror import Digest
from peili.mirror.rights.credentials import Credentials, expiry_of
from peili.mirror.rights.grants import Grants, Scope

DIGESTS = [Digest.of(bytes([number])) for number in range(6)]
SCOPES = [Scope(key, name) for key in (b"one", b"two") for name in ("r.example/a", "r.example/b")]


@dataclass
class Step:
    scope: Scope
    digest: Digest
    remaining: float | None


STEPS = st.builds(Step, st.sampled_from(SCOPES), st.sampled_from(DIGESTS), st.one_of(st.none(), st.floats(-5, 50)))


@given(steps=st.lists(st.one_of(STEPS, st.floats(0, 20)), max_size=40), most=st.integers(2, 40))
@settings(max_examples=50)
def test_nothing_is_allowed_that_was_not_granted_or_that_has_expired(steps: list[Step | float], most: int) -> None:
    clock = Clock()
    grants, model = Grants(10.0, most, clock, clock), dict[tuple[Scope, Digest], float]()
    for step in steps:
        if not isinstance(step, Step):
            clock.now += step
            continue
        scope, digest, remaining = step.scope, step.digest, step.remaining
        grants.add(scope, digest, None if remaining is None else clock.now + remaining)
        until = clock.now + (10.0 if remaining is None else min(10.0, remaining))
        if until > clock.now:
            model[scope, digest] = until
            assert grants.has(scope, digest)  # what was just granted is never the one that is forgotten
        for each in SCOPES:
            for wanted in DIGESTS:
                assert not grants.has(each, wanted) or model[each, wanted] > clock.now
        assert len(grants) <= most


def test_what_a_manifest_refers_to_is_allowed_as_long_as_the_manifest() -> None:
    clock = Clock()
    grants, (manifest, layer, *_) = Grants(10.0, 100, clock, clock), DIGESTS
    grants.add(SCOPES[0], manifest, clock.now + 5, is_manifest=True)
    assert list(grants.manifests(SCOPES[0])) == [manifest]
    clock.now += 4
    grants.inherit(SCOPES[0], layer, manifest)
    assert grants.has(SCOPES[0], layer)
    assert not grants.has(SCOPES[1], layer)
    clock.now += 1
    assert not grants.has(SCOPES[0], layer)
    assert not grants.manifests(SCOPES[0])
    grants.inherit(SCOPES[0], layer, manifest)
    assert not grants.has(SCOPES[0], layer)


def test_scopes_whose_answers_have_expired_take_no_memory_for_ever() -> None:
    clock = Clock()
    grants = Grants(1.0, 10, clock, clock)
    for number in range(100):
        scope = Scope(bytes([number]), "r.example/a")
        grants.add(scope, DIGESTS[0])
        clock.now += 2
        assert not grants.manifests(scope)
    assert len(grants) <= 10


def test_nothing_of_a_token_or_a_password_can_be_read_from_what_is_remembered() -> None:
    header = "Basic " + base64.b64encode(b"alice:secret").decode()
    first, other = Credentials().of(header), Credentials().of(header)
    assert first.is_basic
    assert first.key != other.key  # the salt is another one
    assert first.key == (again := Credentials()).of(header).key or again.of(header).key == again.of(header).key
    for text in (repr(first), repr(Scope(first.key, "r.example/a")), first.key.hex()):
        assert "secret" not in text
        assert base64.b64encode(b"alice:secret").decode() not in text


def test_a_request_without_rights_is_anonymous() -> None:
    credentials = Credentials()
    assert credentials.of(None) == credentials.of("  ")
    assert credentials.of(None).is_anonymous
    assert not credentials.of("Bearer abc").is_anonymous
    assert credentials.of("Bearer abc").key != credentials.of("Bearer abd").key


@given(st.integers(0, 2**39))
def test_the_expiry_of_a_token_is_read(expires: int) -> None:
    assert expiry_of(token("alice", exp=expires)) == expires


@given(st.one_of(st.text(), st.lists(st.text("abcdefgh-_=", max_size=30), min_size=3, max_size=3).map(".".join)))
def test_any_other_token_has_no_known_expiry(text: str) -> None:
    assert expiry_of(text) is None


def test_a_token_with_a_nonsensical_expiry_has_none() -> None:
    values: list[object] = ["soon", None, True, -1, float("inf"), 1e300, {}, [1]]
    for value in values:
        assert expiry_of(token("alice", exp=value)) is None
    assert expiry_of(f".{base64.urlsafe_b64encode(b'[1]').decode()}.") is None
