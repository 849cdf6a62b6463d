"""The router whose members a file lists: both formats, changes, mistakes, and unfinished writes."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.logs import warnings
from tests.support.neighbours import entered, peer_ids
from tests.support.waiting import until

from peili.mirror import ConfigError, Peer, Plugins
from peili.routers.file import FileRouter
from peili.routers.file.router import InvalidFile, parse_members

INTERVAL = 0.05
A, B, C = "http://10.0.0.3:5051", "https://[fd00::4]:5051/peili", "http://10.0.0.5:5051"


def replace(file: Path, text: str) -> None:
    """Replace a file atomically."""
    new = file.with_suffix(".new")
    new.write_text(text)
    new.replace(file)


@pytest.mark.parametrize(
    ("text", "peers"),
    [
        (f"{A}\n{B}\n", [Peer(A, (A,)), Peer(B, (B,))]),
        (f"# members\n\n  {A}/\t# rack 1\r\n\t# {C}\n{B} # x", [Peer(A, (A,)), Peer(B, (B,))]),
        (f"\ufeff{A}\n{A}\n", [Peer(A, (A,))]),
        ("# nobody yet\n", []),
        ("[]", []),
        (json.dumps([A, [B, C]]), [Peer(A, (A,)), Peer(B, (B, C))]),
        (
            "\n" + json.dumps([{"id": "a", "urls": [A, B], "labels": {"zone": "z"}}, {"url": C}], indent=2),
            [Peer("a", (A, B), labels={"zone": "z"}), Peer(C, (C,))],
        ),
    ],
)
def test_both_formats_are_parsed(text: str, peers: list[Peer]) -> None:
    assert parse_members(text) == peers


URL = "not a base URL: {!r}; expected http://HOST:PORT or https://HOST:PORT/PATH"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "it is empty; a file without members has a comment, or is []"),
        (" \n\n", "it is empty; a file without members has a comment, or is []"),
        (f"# members\n{A}\n10.0.0.4:5051\n", f"line 3: {URL.format('10.0.0.4:5051')}"),
        (f"{A} {C}\n", f"line 1: {URL.format(f'{A} {C}')}"),
        (f'[\n  "{A}",\n  "{C}\n', "line 3: no JSON: Invalid control character at"),
        (f'[\n  "{A}"\n', "line 3: no JSON: Expecting ',' delimiter"),
        ("[" * 100_000, "no JSON: maximum recursion depth exceeded while decoding a JSON array from a unicode string"),
        ('["10.0.0.4:5051"]', f"peers[0]: {URL.format('10.0.0.4:5051')}"),
        (f'["{A}", 7]', 'peers[1]: a URL such as "http://10.0.0.3:5051", not 7'),
        (
            f'[{{"url": "{A}", "zone": "a"}}]',
            "peers[0].zone: unknown option; there are: id, labels, tls_name, url, urls",
        ),
    ],
)
def test_the_error_for_malformed_text_is_one_line_that_says_where(text: str, why: str) -> None:
    with pytest.raises(InvalidFile) as raised:
        parse_members(text)
    assert str(raised.value) == why


@given(st.text() | st.recursive(st.none() | st.text(), st.lists).map(json.dumps))
def test_any_text_is_parsed_or_an_error(text: str) -> None:
    try:
        problem = repr(parse_members(text))
    except InvalidFile as error:
        problem = str(error)
    assert len(problem.splitlines()) == 1


@pytest.mark.anyio
async def test_a_file_is_followed_as_it_changes(tmp_path: Path) -> None:
    file = tmp_path / "peers"
    router = FileRouter(file, interval=INTERVAL)
    async with entered(router):
        await asyncio.sleep(2 * INTERVAL)
        assert not router.ready(), "the members are not known yet"
        replace(file, A)
        await until(router.ready)
        assert peer_ids(router) == [A]
        replace(file, json.dumps([A, C]))
        await until(lambda: peer_ids(router) == [A, C])
        file.write_text(C)
        await until(lambda: peer_ids(router) == [C])
        replace(file, "# nobody")
        await until(lambda: not router.peers())


@pytest.mark.anyio
async def test_a_file_that_is_written_in_place_is_read_when_it_is_complete(tmp_path: Path) -> None:
    file = tmp_path / "peers"
    file.write_text(f"{A}\n")
    seen: list[list[str]] = []
    router = FileRouter(file, interval=0.3)
    async with entered(router):
        await until(router.ready)
        with file.open("w") as writer:
            for character in f"{A}\n{C}\n":  # each part is a file whose last URL may be valid and wrong
                writer.write(character)
                writer.flush()
                await asyncio.sleep(0.03)
                seen.append(peer_ids(router))
        await until(lambda: peer_ids(router) == [A, C])
    assert all(each == [A] for each in seen)


@pytest.mark.anyio
async def test_a_mistake_is_logged_once_and_the_last_members_stay(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "peers"
    file.write_text(A)
    async with entered(router := FileRouter(file, interval=INTERVAL)):
        await until(router.ready)
        replace(file, f"{A}\nnonsense\n")
        await until(lambda: warnings(caplog))
        await asyncio.sleep(4 * INTERVAL)
        assert peer_ids(router) == [A]
        file.write_text("")  # a writer that was interrupted
        await until(lambda: len(warnings(caplog)) == 2)
        file.unlink()
        await until(lambda: len(warnings(caplog)) == 3)
        assert peer_ids(router) == [A]
        replace(file, C)
        await until(lambda: peer_ids(router) == [C])
    problem = f"the members can't be read, the last known ones stay: {file}: "
    assert [each.removeprefix(problem) for each in warnings(caplog)] == [
        f"line 2: {URL.format('nonsense')}",
        "it is empty; a file without members has a comment, or is []",
        "No such file or directory",
    ]


@pytest.mark.anyio
async def test_reload_reads_the_file_at_once(tmp_path: Path) -> None:
    file = tmp_path / "peers"
    file.write_text(A)
    async with entered(router := FileRouter(file, interval=3600)):
        await until(router.ready)
        file.write_text(C)
        router.reload()
        await until(lambda: peer_ids(router) == [C])


@pytest.mark.parametrize(
    ("config", "line"),
    [
        ({}, "path: the path of a file"),
        ({"path": ""}, "path: the path of a file, not ''"),
        ({"path": ["/a"]}, "path: the path of a file, not ['/a']"),
        ({"path": "/a", "interval": 0}, "interval: seconds, 0.05 or more, not 0"),
        ({"file": "/a"}, "file: unknown option; there are: path, interval"),
    ],
)
def test_the_error_for_a_wrong_option_is_one_line(config: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError) as raised:
        FileRouter.from_config(config)
    assert str(raised.value) == line


def test_the_router_is_found_by_name() -> None:
    assert isinstance(Plugins().router("file", {"path": "/etc/peili/peers", "interval": 1}), FileRouter)
