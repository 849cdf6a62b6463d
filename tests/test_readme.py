"""What the README shows works as it stands, and it is short."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from peili.mirror import Mirror
from peili.mirror.tls.key_file import create_key_file

pytestmark = pytest.mark.anyio

README = Path(__file__).parent.parent / "README.md"
TEXT = README.read_text(encoding="utf-8")


def block(language: str) -> str:
    """The only block of code in this language."""
    [found] = re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)
    return str(found)


def test_it_is_short() -> None:
    assert len(TEXT.split()) <= 1200


async def test_a_host_embeds_a_mirror_on_its_own_port() -> None:
    names: dict[str, Any] = {"__name__": "agent"}
    exec(compile(block("python"), "README.md", "exec"), names)
    mirror: Mirror = names["mirror"]
    node, runtime, other = (
        httpx.AsyncClient(transport=httpx.ASGITransport(names["app"], client=(host, 1)), base_url="http://localhost")
        for host in ("10.0.0.3", "127.0.0.1", "10.0.0.9")
    )
    async with mirror.lifespan(None), node, runtime, other:
        assert (await runtime.get("/v2/")).status_code == 200
        assert (await node.get("/peili/v2/")).headers["peili-id"] == "node-1"
        missing = await runtime.get(f"/v2/library/redis/blobs/sha256:{64 * '0'}?ns=docker.io")
        assert missing.status_code == 404
        assert (await other.get("/v2/")).status_code == (await other.get("/peili/v2/")).status_code == 403


def test_the_command_takes_the_configuration(tmp_path: Path) -> None:
    file = tmp_path / "peili.toml"
    create_key_file(tmp_path / "key")
    assert block("toml").count("/etc/peili/key") == 1
    file.write_text(block("toml").replace("/etc/peili/key", str(tmp_path / "key")))
    command = [sys.executable, "-m", "peili.adapters.standalone", "serve", "--config", str(file), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
