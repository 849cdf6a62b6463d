"""The messages of the directory: what is sent is parsed again, and nothing else is accepted."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peili.mirror.peer_api.directory import (
    MAX_BATCH,
    MAX_HOMES,
    HoldersAnswer,
    HoldersQuery,
    Holding,
    Holdings,
    KnownHolder,
)
from peili.mirror.peer_api.messages import MAX_KEY_LENGTH, MAX_MESSAGE, MAX_SECONDS

Message = type[Holdings] | type[HoldersQuery] | type[HoldersAnswer]
MESSAGES = (Holdings, HoldersQuery, HoldersAnswer)

VISIBLE = st.characters(min_codepoint=33, max_codepoint=126)
IDS = st.text(VISIBLE, min_size=1, max_size=255)
KEYS = st.text(VISIBLE, min_size=1, max_size=MAX_KEY_LENGTH)
TOKENS = st.text(VISIBLE, min_size=1, max_size=128)
SIZES = st.none() | st.integers(0, 2**60 - 1)
AVAILABLE = SIZES
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)
HOLDINGS = st.builds(
    Holdings,
    session=TOKENS,
    sequence=st.integers(0, 2**60 - 1),
    interval=st.floats(min_value=0.001, max_value=MAX_SECONDS),
    homes=st.none() | st.lists(IDS, max_size=4).map(tuple),
    is_synced=st.booleans(),
    have=st.lists(st.builds(Holding, KEYS, SIZES, AVAILABLE), max_size=4).map(tuple),
    gone=st.lists(KEYS, max_size=4).map(tuple),
    upstream_rate=st.none() | st.floats(0, 1e12),
)
ANSWERS = st.builds(
    HoldersAnswer,
    st.lists(st.builds(KnownHolder, IDS, SIZES, AVAILABLE), max_size=4).map(tuple),
    TOKENS,
    st.none() | st.frozensets(IDS, max_size=4),
)
QUERIES = st.builds(HoldersQuery, KEYS, st.lists(TOKENS, max_size=8).map(tuple))

VALID: dict[Message, dict[str, Any]] = {
    Holdings: {"session": "s", "sequence": 0, "interval": 5, "synced": True, "homes": ["a"], "have": [], "gone": []},
    HoldersQuery: {"key": "k", "known": []},
    HoldersAnswer: {"holders": [["a", 1]], "version": "v", "hosts": ["a"]},
}


@given(HOLDINGS | QUERIES | ANSWERS)
def test_a_message_is_parsed_as_it_was(message: Holdings | HoldersQuery | HoldersAnswer) -> None:
    assert type(message).parse(message.encode()) == message


@pytest.mark.parametrize("message", MESSAGES)
@given(data=st.binary() | JSON.map(lambda value: json.dumps(value).encode()))
def test_anything_else_is_refused_in_one_line(message: Message, data: bytes) -> None:
    problem = ""
    try:
        message.parse(data)
    except ValueError as error:
        problem = str(error)
    assert "\n" not in problem
    assert len(problem) < 100


@pytest.mark.parametrize("message", MESSAGES)
@given(data=st.data())
def test_a_wrong_value_anywhere_is_refused_or_has_the_right_type(message: Message, data: st.DataObject) -> None:
    fields = dict(VALID[message])
    fields[data.draw(st.sampled_from([*fields]))] = data.draw(JSON)
    try:
        parsed = message.parse(json.dumps(fields).encode())
    except ValueError:
        return
    assert message.parse(parsed.encode()) == parsed


@pytest.mark.parametrize(
    ("message", "changes"),
    [
        (Holdings, {"have": [["k", 1]] * MAX_BATCH, "gone": ["x"]}),
        (Holdings, {"have": [["k", 1]] * (MAX_BATCH + 1)}),
        (Holdings, {"homes": ["a"] * (MAX_HOMES + 1)}),
        (Holdings, {"homes": ["white space"]}),
        (Holdings, {"have": [["k"]]}),
        (Holdings, {"have": [["k", -1]]}),
        (Holdings, {"have": [["k", True]]}),
        (Holdings, {"have": [["k", 1, None]]}),
        (Holdings, {"have": [["k" * (MAX_KEY_LENGTH + 1), 1]]}),
        (Holdings, {"have": [["two\nlines", 1]]}),
        (Holdings, {"interval": 0}),
        (Holdings, {"interval": float("nan")}),
        (Holdings, {"interval": MAX_SECONDS + 1}),
        (Holdings, {"sequence": 1.0}),
        (Holdings, {"synced": 1}),
        (HoldersQuery, {"known": ["v"] * 9}),
        (HoldersQuery, {"key": ""}),
        (HoldersAnswer, {"hosts": {"a": 1}}),
        (HoldersAnswer, {"version": None}),
    ],
)
def test_a_value_out_of_bounds_is_refused(message: Message, changes: dict[str, Any]) -> None:
    message.parse(json.dumps(VALID[message]).encode())
    with pytest.raises(ValueError, match="not"):
        message.parse(json.dumps({**VALID[message], **changes}).encode())


@pytest.mark.parametrize("data", [b"[" * 100_000, b"9" * 10_000, b" " * MAX_MESSAGE + b"{}", b"[]", b"\xff"])
@pytest.mark.parametrize("message", MESSAGES)
def test_documents_that_are_made_to_harm_are_refused(message: Message, data: bytes) -> None:
    with pytest.raises(ValueError, match="not"):
        message.parse(data)


def test_a_later_version_may_add_fields() -> None:
    for message, fields in VALID.items():
        assert message.parse(json.dumps({**fields, "new": {"x": 1}}).encode())
