"""What a host reports to homes about what was granted to it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

import pytest
from tests.support.waiting import until

from peili.mirror import Digest, LeaseEnd, Want
from peili.mirror.membership.directory.leases import Leases
from peili.mirror.membership.directory.upstream_rates import UpstreamFetches
from peili.mirror.peer_api.leases import LeaseReport, LeaseReports, LeasesAnswer
from peili.mirror.support.tasks import Tasks

pytestmark = pytest.mark.anyio

KEY = Digest.of(b"a layer")
OTHER = Digest.of(b"another layer")


@asynccontextmanager
async def leases(
    is_drained: Callable[[], bool] = lambda: False,
) -> AsyncGenerator[tuple[Leases, list[LeaseReport]]]:
    """Yield leases, and what the home ``home`` was told."""
    told: list[LeaseReport] = []

    async def send(home: str, message: LeaseReports) -> LeasesAnswer:
        assert home == "home"
        told.extend(message.reports)
        return LeasesAnswer((), 0.1)

    async with Tasks(logging.getLogger("peili.test")) as tasks:
        yield Leases(tasks, send, lambda name: name, UpstreamFetches(time.monotonic), is_drained), told


@pytest.mark.parametrize("is_asking", [False, True])
async def test_a_host_that_goes_upstream_and_can_show_nothing_leaves_its_feeder(is_asking: bool) -> None:
    """No home has told it to. The home would otherwise count it as a child of its feeder for a minute."""
    async with leases() as (subject, told):
        fed = [subject.grant_feed(KEY, "home", 0.1) for _ in range(2)]
        await until(lambda: told)
        with subject.asking(KEY):
            upstream = subject.take_upstream(Want(KEY, can_share=False))
            await fed[0].release(LeaseEnd.SUPERSEDED)  # the other transfer still reads from the feeder
            if is_asking:
                await fed[1].release(LeaseEnd.SUPERSEDED)
        if not is_asking:
            await subject.flush()
            assert not any(each.end for each in told)
            await fed[1].release(LeaseEnd.SUPERSEDED)
        await until(lambda: told[-1] == LeaseReport(KEY, 0, end=LeaseEnd.GONE))
        await upstream.release(LeaseEnd.DONE)
        assert len(subject) == 0


async def test_a_host_that_shows_what_it_gets_from_upstream_keeps_its_place() -> None:
    """The first home is told that it fetches the content, by another message."""
    async with leases() as (subject, told):
        fed = subject.grant_feed(KEY, "home", 0.1)
        upstream = subject.take_upstream(Want(KEY, can_share=True))
        await fed.release(LeaseEnd.SUPERSEDED)
        await upstream.release(LeaseEnd.DONE)
        await subject.flush()
        assert not any(each.end for each in told)


async def test_homes_forget_what_a_drained_host_receives() -> None:
    """Nobody should begin to read it there, neither while it arrives nor afterwards."""
    drained = asyncio.Event()
    async with leases(drained.is_set) as (subject, told):
        fed = subject.grant_feed(KEY, "home", 0.1)
        await until(lambda: told)
        assert not told[-1].end
        await subject.grant_upstream(Want(OTHER, can_share=True), "home", 0.1).release(LeaseEnd.DONE)
        drained.set()
        await until(lambda: {LeaseReport(each, 0, end=LeaseEnd.GONE) for each in (KEY, OTHER)} <= {*told})
        told.clear()
        await fed.release(LeaseEnd.DONE)
        await subject.flush()
        assert all(each.end == LeaseEnd.GONE for each in told)
