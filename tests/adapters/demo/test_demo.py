"""`peili demo`: it ends by itself, with exit code 0 only if every digest was right."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from peili.adapters.demo.story import wrong_digests
from peili.mirror.testing.images import make_layout


def demo(temporary: Path, *flags: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "peili.adapters.standalone", "demo", *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=100,
        env={"TMPDIR": str(temporary), "HTTP_PROXY": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9"},
        check=False,
    )
    return done.returncode, done.stdout


def test_a_pull_continues_from_another_host_and_three_hosts_share_one_download(tmp_path: Path) -> None:
    code, output = demo(tmp_path)
    assert code == 0, output
    assert output.count("; all 6 digests are right") == 2, output
    assert "fails after 8 MiB" in output
    largest = re.search(r" 32\.0 MiB .* from [ab] \((\S+) MiB\) then [ab] \((\S+) MiB\)\n", output)
    assert largest is not None, output
    assert [float(part) for part in largest.groups()] == pytest.approx([8, 24], abs=0.1)
    copies = re.search(r"the registry has sent (\S+) copies for 3 hosts", output)
    assert copies is not None, output
    assert 1 <= float(copies[1]) < 2, output
    for host in "def":
        assert re.search(rf"   {host}  \[#{{20}}\] 12\.0 of 12\.0 MiB  from ", output), output
    assert "Traceback" not in output
    assert not list(tmp_path.iterdir())


def test_wrong_bytes_at_the_source_never_reach_the_client_and_the_demo_fails(tmp_path: Path) -> None:
    code, output = demo(tmp_path, "--corrupt")
    assert code == 1, output
    assert "peer a sent wrong bytes; it is quarantined" in output
    assert "digests are right" not in output
    assert "Traceback" not in output
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", ["flipped", "short", "missing"])
def test_the_check_notices_every_kind_of_damage(damage: str, tmp_path: Path) -> None:
    image = make_layout(tmp_path / "layout", layers=[1000, 2000])
    got = tmp_path / "got"
    got.mkdir()
    for blob in image.blobs:
        (got / blob.digest).write_bytes(image.blob_path(blob.digest).read_bytes())
    assert wrong_digests(got, image.target.digest) == []
    for blob in image.blobs:
        file = got / blob.digest
        right = file.read_bytes()
        if damage == "missing":
            file.unlink()
        else:
            file.write_bytes(right[:-1] if damage == "short" else bytes([right[0] ^ 1]) + right[1:])
        assert wrong_digests(got, image.target.digest) == [blob.digest]
        file.write_bytes(right)
