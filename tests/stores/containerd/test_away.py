"""The store while containerd is not started yet, restarts, hangs or refuses access: it logs why, and recovers."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from tests.stores.containerd.helpers import PROMPT, eventually, read_all, ready
from tests.stores.containerd.namespace import TAG, Namespace
from tests.support.directories import open_directory, short_directory

from peili.mirror import Digest, Gone, Have, NotFound, Reference, StoreUnavailable, Synced
from peili.mirror.testing import context_for, entered, watching
from peili.stores.containerd import ContainerdStore
from peili.stores.containerd.api import why_unreachable
from peili.stores.containerd.content import Access, access_to

pytestmark = pytest.mark.anyio

DEMO = Reference.parse(TAG)
ABSENT = Digest.of(b"nobody has this")
RECONNECTED = 60.0  # the most seconds until a restarted containerd is followed again; usually 2


async def stop(namespace: Namespace) -> None:
    await asyncio.to_thread(namespace.containerd.stop)


async def start(namespace: Namespace) -> None:
    await asyncio.to_thread(namespace.containerd.start)


async def test_the_store_waits_for_a_containerd_that_starts_later(own_namespace: Namespace) -> None:
    image = await own_namespace.load()
    await stop(own_namespace)
    store = own_namespace.store()
    async with entered(store), watching(store) as seen:
        with pytest.raises(StoreUnavailable):
            await store.resolve(DEMO)
        assert not store.ready()
        assert not seen.events
        await start(own_namespace)
        await eventually(store.ready, "containerd is followed", within=RECONNECTED)
        await seen.until(lambda: DEMO in seen.have, within=PROMPT)
        assert await store.resolve(DEMO) == image.target


async def test_the_store_serves_one_mirror_at_a_time(namespace: Namespace) -> None:
    digest, store = await namespace.put(b"content"), namespace.store()
    async with ready(store):
        with pytest.raises(RuntimeError, match="running already"):
            async with entered(store):
                pass
        assert store.ready()
        assert (await store.describe(digest)).size == 7


async def test_after_a_restart_watchers_only_receive_differences(own_namespace: Namespace) -> None:
    kept = await own_namespace.load("docker.io/library/kept:v1")
    store = own_namespace.store()
    async with ready(store), watching(store) as seen:
        await seen.until(lambda: seen.synced, within=PROMPT)
        before = len(seen.events)
        await stop(own_namespace)
        await eventually(lambda: not store.ready(), "the stop is noticed")
        await start(own_namespace)
        await own_namespace.load("docker.io/library/new:v1")
        new = Reference.parse("docker.io/library/new:v1")
        await seen.until(lambda: new in seen.have, within=RECONNECTED)
        await eventually(store.ready, "containerd is followed")
        repeated = {event.key for event in seen.events[before:] if isinstance(event, Have | Gone)}
        assert not repeated & {blob.digest for blob in kept.blobs}
        assert seen.events.count(Synced()) == 1


async def test_content_removed_while_disconnected_is_gone_after_the_reconnect(own_namespace: Namespace) -> None:
    image = await own_namespace.load()
    store = own_namespace.store()
    async with ready(store), watching(store) as seen:
        await seen.until(lambda: DEMO in seen.have, within=PROMPT)
        await stop(own_namespace)
        await eventually(lambda: not store.ready(), "the stop is noticed")
        shutil.rmtree(own_namespace.containerd.socket.parent / "root")
        await start(own_namespace)
        await seen.until(lambda: not seen.have, within=RECONNECTED)
        with pytest.raises(NotFound):
            await store.describe(image.target.digest)


async def test_known_content_is_served_while_containerd_is_away(own_namespace: Namespace) -> None:
    image = await own_namespace.load()
    store = own_namespace.store()
    async with ready(store):
        await eventually(store.ready, "ready")
        await stop(own_namespace)
        assert (await store.describe(image.target.digest)).media_type == image.target.media_type
        async with await store.open(image.layers[0].digest) as content:
            assert Digest.of(await read_all(content)) == image.layers[0].digest
        for call in (store.resolve(DEMO), store.images(), store.describe(ABSENT), store.discard(ABSENT)):
            with pytest.raises(StoreUnavailable, match=r"no socket|does not answer"):
                await call
        with pytest.raises(StoreUnavailable):
            await store.open(ABSENT, partial=True)


async def test_a_call_to_a_hanging_containerd_times_out(
    own_namespace: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = own_namespace.store()
    async with ready(store):
        monkeypatch.setattr("peili.stores.containerd.api.CALL_TIMEOUT", 0.3)
        with own_namespace.frozen(), pytest.raises(StoreUnavailable, match="did not answer in time"):
            await store.resolve(DEMO)
        monkeypatch.undo()
        with pytest.raises(NotFound):
            await store.resolve(DEMO)


async def test_containerd_is_not_asked_about_a_blob_without_a_file(own_namespace: Namespace) -> None:
    await own_namespace.load()  # some versions have no content directory before
    store = own_namespace.store()
    async with ready(store):
        with own_namespace.frozen():
            for call in (store.describe(ABSENT), store.open(ABSENT), store.open(ABSENT, partial=True)):
                with pytest.raises(NotFound):
                    await call


async def test_each_state_is_logged_once(own_namespace: Namespace, caplog: pytest.LogCaptureFixture) -> None:
    await stop(own_namespace)
    caplog.set_level(logging.INFO)
    store = own_namespace.store()
    log = logging.getLogger("peili.test")

    def logged() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.name == log.name]

    async with context_for(store, log=log) as context, store.run(context):
        await eventually(logged, "the absence is logged")
        await asyncio.sleep(1.6)  # several tries
        [away] = logged()
        assert f"no socket {own_namespace.containerd.socket}" in away
        await start(own_namespace)
        await eventually(store.ready, "containerd is followed", within=RECONNECTED)
        await eventually(lambda: "following containerd" in caplog.text, "this is logged, too")
        await asyncio.sleep(1.5)  # several listings
        back = logged()[1:]
        assert [line for line in back if "following containerd" in line] == back[-1:]


async def test_a_content_directory_that_appears_later_is_used(
    own_namespace: Namespace, caplog: pytest.LogCaptureFixture
) -> None:
    """containerd ≥ 1.7 creates the directory with the first blob."""
    caplog.set_level(logging.INFO)
    away = own_namespace.content.with_name("away")
    digest = await own_namespace.put(data := os.urandom(100_000))
    own_namespace.content.rename(away)
    store, log = own_namespace.store(), logging.getLogger("peili.test")
    try:
        async with context_for(store, log=log) as context, store.run(context), watching(store) as seen:
            await eventually(store.ready, "containerd is followed")
            assert f"through its API, because {own_namespace.content} does not exist yet" in caplog.text
            assert "can't be read" not in caplog.text
            away.rename(own_namespace.content)
            await eventually(
                lambda: f"content is read from {own_namespace.content}" in caplog.text, "the directory is found"
            )
            async with await store.open(digest) as content:
                assert content.fileno() is not None
                assert await read_all(content) == data
            async with own_namespace.writing(os.urandom(1000)) as writer:  # an ingest is visible, too
                await writer.write(b"a")
                async with await store.open(writer.digest, partial=True) as content:
                    assert not content.complete
            added = await own_namespace.put(b"new")
            await seen.until(lambda: added in seen.have, within=PROMPT)
            own_namespace.content.rename(away)
            await eventually(lambda: caplog.text.count("does not exist yet") == 2, "its absence is noticed")
    finally:
        if away.exists():
            away.rename(own_namespace.content)


async def test_the_store_can_be_entered_again(namespace: Namespace) -> None:
    image = await namespace.load()
    store = namespace.store()
    for _ in range(3):
        async with ready(store):
            assert await store.resolve(DEMO) == image.target
        assert not store.ready()
        with pytest.raises(StoreUnavailable, match="not running"):
            await store.resolve(DEMO)


async def test_no_task_remains_after_exit(namespace: Namespace) -> None:
    before = asyncio.all_tasks()
    for _ in range(3):
        async with ready(namespace.store()):
            pass
        assert asyncio.all_tasks() == before


async def test_a_call_that_waits_at_exit_raises_store_unavailable(own_namespace: Namespace) -> None:
    store = own_namespace.store()
    async with AsyncExitStack() as stack:
        async with ready(store):
            stack.enter_context(own_namespace.frozen())
            call = asyncio.create_task(store.resolve(DEMO))
            await asyncio.sleep(0)
        with pytest.raises(StoreUnavailable, match="closed"):
            await call


async def test_the_store_can_exit_before_containerd_was_reached() -> None:
    async with entered(ContainerdStore("/nowhere/absent.sock")):
        await asyncio.sleep(0)


def test_the_reason_for_an_unreachable_socket(tmp_path: Path) -> None:
    absent, file, nested = tmp_path / "absent", tmp_path / "file", tmp_path / "file" / "socket"
    file.touch()
    assert why_unreachable(absent) == f"there is no socket {absent}: containerd does not run, or has another address"
    assert why_unreachable(file) == f"{file} is not a socket; use the one that containerd listens on"
    assert "no socket" in why_unreachable(nested)


READ = """
import json, os, sys
from pathlib import Path
from peili.stores.containerd.content import Access, access_to
os.umask(0o022)
top, cases = Path(sys.argv[1]), json.loads(sys.argv[2])
def is_readable(number, of, mode):
    directory = top / str(number)
    (directory / "root/blobs/sha256").mkdir(parents=True)
    (directory / of).chmod(int(mode, 8))
    child = os.fork()
    if not child:
        os.setuid(65534)
        os._exit(11 if access_to(directory / "root") is Access.READABLE else 10)
    return {10: False, 11: True}[os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])]
print(json.dumps([is_readable(number, *case) for number, case in enumerate(cases)]))
"""
READ_CASES = [(of, mode) for of in (".", "root", "root/blobs", "root/blobs/sha256") for mode in ("755", "700")]


@pytest.fixture(scope="module")
def readable() -> Mapping[tuple[str, str], bool]:
    """Whether another user can read the content store in which one directory has another mode, for each case."""
    with open_directory() as directory:
        command = [sys.executable, "-c", READ, str(directory), json.dumps(READ_CASES)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return dict(zip(READ_CASES, json.loads(done.stdout), strict=True))


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to change the user")
@pytest.mark.parametrize(("of", "mode"), READ_CASES)
def test_a_directory_that_the_user_can_not_read_is_not_readable(
    readable: Mapping[tuple[str, str], bool], of: str, mode: str
) -> None:
    """The store then reads content through containerd's API."""
    assert readable[of, mode] == (mode == "755")


def test_a_new_content_store_is_readable(tmp_path: Path) -> None:
    assert access_to(tmp_path) is Access.READABLE
    (tmp_path / "blobs" / "sha256").mkdir(parents=True)
    assert access_to(tmp_path) is Access.READABLE
    assert access_to(tmp_path / "missing") is Access.ABSENT


ASK = """
import os, socket, sys
from pathlib import Path
from peili.stores.containerd.api import why_unreachable
path = Path(sys.argv[1])
socket.socket(socket.AF_UNIX).bind(sys.argv[1])
path.chmod(0o600)
path.parent.chmod(int(sys.argv[2], 8))
os.setuid(65534)
print(why_unreachable(path))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to change the user")
@pytest.mark.parametrize(("directory_mode", "why"), [("755", "on"), ("700", "to reach")])
def test_the_reason_names_missing_permissions(directory_mode: str, why: str) -> None:
    with open_directory() as directory:
        command = [sys.executable, "-W", "ignore", "-c", ASK, f"{directory}/s", directory_mode]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.startswith(f"no permission {why} {directory}/s; run as root, or")


@pytest.mark.parametrize("name", ["a b", "#1", "what?", "50%", "%41", "ä's"])
async def test_the_socket_may_be_in_a_directory_of_any_name(namespace: Namespace, name: str) -> None:
    await namespace.load()
    with short_directory() as directory:
        (directory / name).symlink_to(namespace.containerd.socket.parent)
        store = ContainerdStore(str(directory / name / namespace.containerd.socket.name), namespaces=[namespace.name])
        async with ready(store):
            assert await store.resolve(DEMO)
