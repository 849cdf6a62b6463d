"""The messages about leases: what is sent is parsed again, and nothing else is accepted."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.mirror.peer_api.test_directory import ANSWERS, IDS, JSON, KEYS, SIZES, TOKENS

from peili.mirror.peer_api.directory import KnownHolder
from peili.mirror.peer_api.leases import (
    MAX_FAILED,
    MAX_REPORTS,
    AcquireQuery,
    ClaimRequest,
    FeedFrom,
    GoUpstream,
    Granted,
    LeaseReport,
    LeaseReports,
    LeasesAnswer,
    OtherHome,
    WaitFor,
    parse_acquire_answer,
)
from peili.mirror.peer_api.messages import MAX_SECONDS

NUMBERS = st.integers(0, 2**60 - 1)
RATES = st.none() | st.floats(0, 2**59)
SECONDS = st.floats(0.001, MAX_SECONDS)
REQUESTS = st.builds(
    ClaimRequest,
    st.just("h"),
    KEYS,
    NUMBERS,
    SIZES,
    st.booleans(),
    st.dictionaries(IDS, TOKENS, max_size=4),
    RATES,
    st.booleans(),
    st.booleans(),
)
QUERIES = st.builds(AcquireQuery, REQUESTS, st.lists(TOKENS, max_size=8).map(tuple), st.booleans())
HOLDERS = st.lists(st.builds(KnownHolder, IDS, SIZES, SIZES), min_size=1, max_size=4).map(tuple)
GRANTS = st.builds(FeedFrom, HOLDERS) | st.builds(WaitFor, SECONDS) | st.just(GoUpstream())
GRANTED = st.builds(Granted, GRANTS, ANSWERS, SECONDS)
REPORTS = st.builds(LeaseReport, KEYS, NUMBERS, st.none() | IDS, st.none() | TOKENS, SIZES, st.booleans())
MESSAGES = (
    QUERIES
    | GRANTED
    | st.builds(OtherHome, IDS)
    | st.builds(LeaseReports, st.lists(REPORTS, max_size=4).map(tuple), RATES)
    | st.builds(LeasesAnswer, st.lists(KEYS, max_size=4).map(tuple), SECONDS)
)

Message = AcquireQuery | Granted | OtherHome | LeaseReports | LeasesAnswer
PARSE: dict[str, Callable[[bytes], Message]] = {
    "acquire": lambda data: AcquireQuery.parse(data, "h"),
    "answer": parse_acquire_answer,
    "leases": LeaseReports.parse,
    "leases answer": LeasesAnswer.parse,
}
OF_TYPE = {
    AcquireQuery: "acquire",
    Granted: "answer",
    OtherHome: "answer",
    LeaseReports: "leases",
    LeasesAnswer: "leases answer",
}
VALID: list[tuple[str, dict[str, Any]]] = [
    (
        "acquire",
        {"key": "k", "offset": 0, "share": True, "final": False, "failed": {"a": "slow"}, "rate": 1},
    ),
    ("answer", {"feed": [["a", 1, 0]], "holders": [], "version": "v", "hosts": ["a"], "report": 1}),
    ("answer", {"wait": 1, "holders": [], "version": "v", "report": 1}),
    ("answer", {"upstream": True, "holders": [], "version": "v", "report": 1}),
    ("answer", {"home": "a"}),
    ("leases", {"leases": [{"key": "k", "offset": 1, "feeder": "a", "available": 2, "end": "done"}], "rate": 1}),
    ("leases answer", {"superseded": ["k"], "report": 1}),
    ("acquire", {"key": "k", "offset": 0, "share": True, "final": False, "fetching": True, "follows": True}),
    ("leases", {"leases": [{"key": "k", "offset": 0, "queued": True}]}),
]


@given(MESSAGES)
def test_a_message_is_parsed_as_it_was(message: Message) -> None:
    assert PARSE[OF_TYPE[type(message)]](message.encode()) == message


@pytest.mark.parametrize("name", PARSE)
@given(data=st.binary() | JSON.map(lambda value: json.dumps(value).encode()))
def test_anything_else_is_refused_in_one_line(name: str, data: bytes) -> None:
    problem = ""
    try:
        PARSE[name](data)
    except ValueError as error:
        problem = str(error)
    assert "\n" not in problem
    assert len(problem) < 100


@pytest.mark.parametrize(("name", "fields"), VALID)
@given(data=st.data())
def test_a_wrong_value_anywhere_is_refused_or_has_the_right_type(
    name: str, fields: dict[str, Any], data: st.DataObject
) -> None:
    changed = {**fields, data.draw(st.sampled_from([*fields])): data.draw(JSON)}
    try:
        parsed = PARSE[name](json.dumps(changed).encode())
    except ValueError:
        return
    assert PARSE[name](parsed.encode()) == parsed


def test_a_host_never_asks_again_at_once() -> None:
    name, fields = VALID[2]
    parsed = PARSE[name](json.dumps({**fields, "wait": 1e-155}).encode())
    assert isinstance(parsed, Granted)
    assert parsed.grant == WaitFor(0.001)
    assert PARSE[name](parsed.encode()) == parsed


@pytest.mark.parametrize(
    ("number", "changes"),
    [
        (0, {"failed": {f"h{number}": "slow" for number in range(MAX_FAILED + 1)}}),
        (0, {"failed": ["a"]}),
        (0, {"failed": {"a b": "slow"}}),
        (0, {"failed": {"a": ""}}),
        (0, {"failed": {"a": "x" * 129}}),
        (0, {"offset": None}),
        (0, {"offset": -1}),
        (0, {"rate": float("inf")}),
        (0, {"rate": -1}),
        (0, {"known": ["v"] * 9}),
        (1, {"feed": []}),
        (1, {"feed": [["a", 1]] * 1001}),
        (1, {"report": 0}),
        (1, {"report": None}),
        (2, {"wait": -1}),
        (2, {"wait": MAX_SECONDS + 1}),
        (3, {"upstream": 1}),
        (4, {"home": ""}),
        (5, {"leases": [{"key": "k", "offset": 1}] * (MAX_REPORTS + 1)}),
        (5, {"leases": [["k", 1]]}),
        (5, {"leases": [{"key": "k", "offset": 1, "end": ""}]}),
        (6, {"superseded": ["k"] * (MAX_REPORTS + 1)}),
    ],
)
def test_a_value_out_of_bounds_is_refused(number: int, changes: dict[str, Any]) -> None:
    name, fields = VALID[number]
    PARSE[name](json.dumps(fields).encode())
    with pytest.raises(ValueError, match=r"not|no holder|none"):
        PARSE[name](json.dumps({**fields, **changes}).encode())


@pytest.mark.parametrize(("name", "fields"), VALID)
def test_a_later_version_may_add_fields(name: str, fields: dict[str, Any]) -> None:
    assert PARSE[name](json.dumps({**fields, "new": {"x": 1}}).encode())
