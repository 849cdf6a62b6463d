"""Parsing and writing the WWW-Authenticate header."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peili.mirror.upstream.challenges import Challenge, find_challenge, parse_challenges

BEARER = Challenge("Bearer", {"realm": "https://auth.example/token", "service": "registry.example"})
ALMOST_CHALLENGES = st.text('BearBasic realm="=",\\ \t\nä', max_size=60)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ('Bearer realm="https://auth.example/token",service="registry.example"', [BEARER]),
        ('bearer REALM = "https://auth.example/token" , service=registry.example', [BEARER]),
        ('Basic realm="a, \\"b\\""', [Challenge("Basic", {"realm": 'a, "b"'})]),
        ("Negotiate", [Challenge("Negotiate")]),
        ("Negotiate abcd==, Basic realm=x", [Challenge("Negotiate"), Challenge("Basic", {"realm": "x"})]),
        ("Basic realm=x, Digest realm=y, qop=auth", [
            Challenge("Basic", {"realm": "x"}),
            Challenge("Digest", {"realm": "y", "qop": "auth"}),
        ]),
        ('Bearer realm="a",realm="b"', [Challenge("Bearer", {"realm": "a"})]),
        ('Bearer realm="open', [Challenge("Bearer")]),
        ("", []),
        (", ,", []),
        ('Bearer realm="a\r\nX: y"', []),
        ("Basic realm=" + "x" * 9000, []),
    ],
)  # fmt: skip
def test_a_header_is_parsed(header: str, expected: list[Challenge]) -> None:
    assert parse_challenges(header) == expected


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        (['Basic realm="x"', str(BEARER)], BEARER),
        ([f'Basic realm="x", {BEARER}'], BEARER),
        (["Bearer service=x", 'Basic realm="x"'], Challenge("Basic", {"realm": "x"})),  # no token server is named
        (["Negotiate"], None),
        ([], None),
    ],
)
def test_the_challenge_that_a_runtime_can_answer_is_found(headers: list[str], expected: Challenge | None) -> None:
    assert find_challenge(headers) == expected


def test_the_scope_is_that_of_the_repository() -> None:
    sent = Challenge("Bearer", {**BEARER.parameters, "scope": "repository:other:pull", "error": "invalid_token"})
    expected = {**BEARER.parameters, "scope": "repository:acme/demo:pull"}
    assert sent.for_repository("acme/demo") == Challenge("Bearer", expected)
    basic = Challenge("Basic", {"realm": "x"})
    assert basic.for_repository("acme/demo") == basic


@settings(max_examples=50)
@given(st.dictionaries(st.sampled_from(["realm", "service", "scope"]), st.text('a", \\=', max_size=9)))
def test_what_is_written_is_parsed_to_the_same(parameters: dict[str, str]) -> None:
    challenge = Challenge("Bearer", parameters)
    assert parse_challenges(str(challenge)) == [challenge]


@given(ALMOST_CHALLENGES)
def test_parsing_never_fails(header: str) -> None:
    for each in parse_challenges(header):
        assert "\n" not in str(each)
