"""The headers that describe content which is still arriving."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peili.mirror.client.connection import MAX_HEAD_SIZE
from peili.mirror.peer_api.keys import MAX_PATH, InFlight

IDENTITIES = st.one_of(
    st.just("upstream"), st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=40)
)
COUNTS = st.integers(0, 10**18 - 1)
STATES = st.builds(
    InFlight,
    COUNTS,
    st.none() | COUNTS,
    st.lists(IDENTITIES, max_size=MAX_PATH).map(tuple),
    st.none() | IDENTITIES,
)


@given(STATES)
def test_the_headers_say_all_of_it(state: InFlight) -> None:
    headers = state.headers()
    assert all(value.isascii() and value.isprintable() for value in headers.values())
    assert InFlight.parse({name.lower(): value for name, value in headers.items()}) == state


@pytest.mark.parametrize("character", "x%")
def test_a_path_with_long_ids_is_cut_so_that_others_can_read_the_response(character: str) -> None:
    path = tuple(character * 250 + str(number) for number in range(10, 10 + MAX_PATH))
    headers = InFlight(5, 9, path, path[1]).headers()
    assert sum(len(name) + len(value) + 4 for name, value in headers.items()) < MAX_HEAD_SIZE * 3 / 4
    shown = InFlight.parse({name.lower(): value for name, value in headers.items()})
    assert shown is not None
    assert shown.path
    assert shown.path == path[: len(shown.path)]


def test_usual_ids_stand_as_they_are() -> None:
    headers = InFlight(5, 9, ("host-a", "http://10.0.0.2:5051"), "http://10.0.0.2:5051").headers()
    assert headers == {
        "Peili-Complete": "false",
        "Peili-Available": "5",
        "Peili-Size": "9",
        "Peili-Path": "host-a, http://10.0.0.2:5051",
        "Peili-Waiting": "http://10.0.0.2:5051",
    }


def test_a_host_whose_runtime_fetches_from_upstream_waits_for_upstream() -> None:
    assert InFlight(0, path=("a",)).headers()["Peili-Waiting"] == "upstream"


def test_a_peer_that_states_only_how_much_it_has() -> None:
    assert InFlight.parse({"peili-complete": "false", "peili-available": "5"}) == InFlight(5)


@pytest.mark.parametrize("headers", [{}, {"peili-complete": "true", "peili-available": "5"}], ids=str)
def test_other_headers_describe_nothing(headers: dict[str, str]) -> None:
    assert InFlight.parse(headers) is None


@pytest.mark.parametrize(
    "headers",
    [
        {"peili-available": ""},
        {"peili-available": "-1"},
        {"peili-path": "a,,b"},
        {"peili-path": "a b"},
        {"peili-path": "a%00b"},
        {"peili-path": ", ".join("a" * (MAX_PATH + 1))},
        {"peili-waiting": "käse"},
        {"peili-waiting": ""},
    ],
    ids=str,
)
def test_a_malformed_header_is_refused(headers: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="Peili-"):
        InFlight.parse({"peili-complete": "false", "peili-available": "5", **headers})


def test_a_longer_path_is_cut_off() -> None:
    path = tuple(str(number) for number in range(MAX_PATH + 5))
    parsed = InFlight.parse({name.lower(): value for name, value in InFlight(0, path=path).headers().items()})
    assert parsed is not None
    assert parsed.path == path[:MAX_PATH]
