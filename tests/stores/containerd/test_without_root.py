"""peili serves content without root, if it may use the socket and read the content."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from tests.lab.containerd import Containerd
from tests.stores.containerd.namespace import Namespace
from tests.support.plain_http import plain_client

SERVE = """
import asyncio, encodings.idna, json, os, resource, sys
from peili.mirror import Mirror, serve
from peili.routers.memory import MemoryRouter
from peili.stores.containerd import ContainerdStore

async def main():
    store = ContainerdStore(sys.argv[1], namespaces=[sys.argv[2]])
    mirror = Mirror(store, MemoryRouter())
    async with mirror, serve(mirror, local="127.0.0.1:0") as serving:
        await mirror.wait_ready(300)
        print(json.dumps([serving.local_addresses[0], os.geteuid()]), flush=True)
        await asyncio.to_thread(sys.stdin.read)

os.setgroups([])
os.setgid(65534)
os.setuid(65534)
asyncio.run(main())
"""
"""Modules are imported before the user changes: another user may not be able to read those of the tests."""


@contextmanager
def usable_by_all(containerd: Containerd, root: Path) -> Generator[None]:
    """Let every user use the socket and read the content."""
    modes: dict[Path, int] = {}
    for path in [containerd.socket, *containerd.socket.parents, root, *root.parents, *root.rglob("*")]:
        if path == Path("/"):
            continue
        with suppress(FileNotFoundError):  # containerd removes what other tests have deleted
            modes[path] = path.stat().st_mode
            added = 0o666 if path == containerd.socket else 0o555 if path.is_dir() else 0o444
            path.chmod(modes[path] & 0o7777 | added)
    try:
        yield
    finally:
        for path, mode in modes.items():
            with suppress(FileNotFoundError):
                path.chmod(mode & 0o7777)


@pytest.mark.anyio
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to change the user")
async def test_another_user_serves_what_it_may_read(own_namespace: Namespace) -> None:
    image = await own_namespace.load(layers=(300_000,))
    containerd = own_namespace.containerd
    root = containerd.socket.parent / "root" / "io.containerd.content.v1.content"
    with usable_by_all(containerd, root):
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-W", "ignore", "-c", SERVE, str(containerd.socket), own_namespace.name),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            address, user = json.loads(await process.stdout.readline())
            assert user == 65534
            layer = image.layers[0]
            url = f"http://{address}/v2/registry.example/demo/blobs/{layer.digest}"
            async with asyncio.timeout(60), plain_client(trust_env=False, timeout=30) as client:
                while (response := await client.get(url)).status_code != 200:
                    pass
            assert len(response.content) == layer.size
        finally:
            process.stdin.close()
            await process.wait()
