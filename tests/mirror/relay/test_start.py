"""The start of a transfer: it is hedged, it gives up quickly, and it sends no status line before the first byte."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from tests.mirror.relay.peers import (
    Script,
    answers,
    breaks_connections,
    chunked,
    gzipped,
    honest,
    no_http,
    peers,
    refusing_url,
    silent,
    silent_after_head,
    unknown_length,
    wrong_digest,
)
from tests.mirror.relay.pulling import LARGE, NEVER, SMALL, FixedRouter, content, path_of, pulling
from tests.support.waiting import until

from peili.mirror import Digest, Holder, Peer

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("size", [0, 1, SMALL, LARGE])
async def test_an_honest_holder_is_relayed(size: int) -> None:
    data = content(size)
    async with peers(data, honest) as [a], pulling([a.holder]) as host:
        pulled = await host.get(Digest.of(data))
        assert (pulled.status, pulled.body, pulled.whole) == (200, data, True)
        assert pulled.headers["docker-content-digest"] == Digest.of(data)
        assert len(a.requests) == 1


async def test_a_silent_first_holder_costs_the_hedge_delay_and_is_dropped() -> None:
    data = content(LARGE)
    async with (
        peers(data, silent, honest) as [a, b],
        pulling([a.holder, b.holder], hedge_delay=0.1, first_byte_timeout=NEVER, stall_timeout=NEVER) as host,
    ):
        pulled = await host.get(Digest.of(data))
        assert pulled.body == data
        assert len(a.requests) == 1
        await until(lambda: a.open == 0)


async def test_only_one_holder_is_asked_if_it_answers_in_time() -> None:
    data = content(SMALL)
    async with peers(data, honest, honest) as [a, b], pulling([a.holder, b.holder]) as host:
        assert (await host.get(Digest.of(data))).body == data
        assert (len(a.requests), len(b.requests)) == (1, 0)


async def test_an_unexpected_error_at_one_holder_does_not_affect_another(caplog: pytest.LogCaptureFixture) -> None:
    data = content(LARGE)
    odd = Peer("odd", ("http://127.0.0.1:1",))
    object.__setattr__(odd, "urls", (5,))  # like a subclass of a plug-in
    async with peers(data, honest) as [a], pulling([Holder(odd, complete=True), a.holder]) as host:
        for _ in range(2):
            pulled = await host.get(Digest.of(data))
            assert (pulled.status, pulled.whole, pulled.body) == (200, True, data)
        assert host.mirror.metrics.failures.value("broken") >= 1
    [record] = [each for each in caplog.records if each.levelno >= logging.ERROR]
    assert record.getMessage() == "fetching from peer odd failed, which is a bug"
    assert record.exc_info is not None


async def test_the_runtime_goes_upstream_at_once_if_all_holders_refuse() -> None:
    dead = [Holder(Peer(name, (refusing_url(),)), complete=True) for name in "abcd"]
    async with pulling(dead, hedge_delay=NEVER) as host:
        assert (await host.get(Digest.of(b"x"))).status == 404


async def test_content_that_no_peer_has_is_404_without_a_wait() -> None:
    """It takes milliseconds, which the benchmark measures."""
    names = ("wait_timeout", "lookup_timeout", "first_byte_timeout", "hedge_delay")
    waits: dict[str, Any] = dict.fromkeys(names, NEVER)
    async with pulling(FixedRouter(), **waits) as host:
        assert (await host.get(Digest.of(b"x"))).status == 404


@pytest.mark.parametrize("size", [SMALL, LARGE])
async def test_no_status_line_is_sent_before_the_first_byte(size: int) -> None:
    data = content(size)
    async with peers(data, silent_after_head) as [a], pulling([a.holder], wait_timeout=NEVER) as host:
        assert (await host.get(Digest.of(data))).status == 404
        await until(lambda: a.open == 0)


@pytest.mark.parametrize(
    "bad",
    [
        answers(404),
        answers(403),
        answers(429),
        answers(503),
        answers(500),
        answers(204),
        answers(307, location="http://127.0.0.1:1/"),
        breaks_connections,
        gzipped,
        chunked,
        unknown_length,
        no_http,
        wrong_digest,
    ],
)
async def test_a_holder_that_does_not_send_the_content_is_passed_over(bad: Script) -> None:
    data = content(SMALL)
    async with peers(data, bad, honest) as [a, b], pulling([a.holder, b.holder], hedge_delay=NEVER) as host:
        pulled = await host.get(Digest.of(data))
        assert (pulled.status, pulled.body) == (200, data)
        assert a.requests
        assert b.ranges == [None]


async def test_a_redirect_is_not_followed() -> None:
    data = content(SMALL)
    async with peers(data, honest) as [elsewhere]:
        to = answers(307, location=f"{elsewhere.urls[0]}/v2/x")
        async with peers(data, to) as [a], pulling([a.holder]) as host:
            assert (await host.get(Digest.of(data))).status == 404
            assert not elsewhere.requests


async def test_the_whole_wait_for_a_first_byte_is_limited() -> None:
    data = content(SMALL)
    scripts = [silent] * 4
    async with peers(data, *scripts) as silents:
        holders = [each.holder for each in silents]
        async with pulling(
            holders, wait_timeout=0.5, first_byte_timeout=NEVER, stall_timeout=NEVER, hedge_delay=0.05
        ) as host:
            assert (await host.get(Digest.of(data))).status == 404
            assert host.mirror.metrics.limited.value("wait_timeout") == 1
            await until(lambda: not any(each.open for each in silents))


async def test_head_has_the_headers_of_get() -> None:
    data = content(LARGE)
    async with peers(data, honest) as [a], pulling([a.holder]) as host:
        pulled = await host.get(Digest.of(data), method="HEAD")
        assert (pulled.status, pulled.body) == (200, b"")
        assert pulled.headers["content-length"] == str(LARGE)
        assert [each.method for each in a.requests] == ["HEAD"]
        assert (await host.get(Digest.of(b"?"), method="HEAD")).status == 404


async def test_transfers_above_the_limit_are_404() -> None:
    data = content(SMALL)
    async with peers(data, silent) as [a], pulling([a.holder], transfers=1, first_byte_timeout=NEVER) as host:
        waiting = await host.ask(Digest.of(data))
        await until(lambda: a.requests)
        assert (await host.get(Digest.of(data))).status == 404
        assert len(a.requests) == 1
        waiting.close()
        await until(lambda: a.open == 0)
        a.script = honest
        await until(host.mirror.ready)
        assert (await host.get(Digest.of(data))).status == 200


async def test_if_none_match_gets_304_once_a_peer_has_the_content() -> None:
    data = content(SMALL)
    path, condition = path_of(Digest.of(data)), {"If-None-Match": f'"{Digest.of(data)}"'}
    async with peers(data, honest) as [a], pulling([a.holder]) as host:
        answer = await host.client.get(path, headers=condition)
        assert (answer.status_code, answer.content) == (304, b"")
    async with pulling([]) as host:
        assert (await host.client.get(path, headers=condition)).status_code == 404
