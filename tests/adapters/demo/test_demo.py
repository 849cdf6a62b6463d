"""`peili demo`: it ends by itself, and with 0 only where every digest was right."""

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
        timeout=60,
        env={"TMPDIR": str(temporary), "HTTP_PROXY": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9"},
        check=False,
    )
    return done.returncode, done.stdout


def test_the_image_comes_from_the_one_that_has_it_and_survives_that_one_s_end(tmp_path: Path) -> None:
    code, told = demo(tmp_path)
    assert code == 0, told
    assert told.count("; all 6 digests are right") == 2, told
    assert "fails after 8 MiB" in told
    largest = re.search(r" 32\.0 MiB .* from [ab] \((\S+) MiB\) then [ab] \((\S+) MiB\)\n", told)
    assert largest is not None, told
    assert [float(part) for part in largest.groups()] == pytest.approx([8, 24], abs=0.1)
    assert "Traceback" not in told
    assert not list(tmp_path.iterdir())


def test_with_a_source_that_lies_nothing_wrong_passes_and_it_fails(tmp_path: Path) -> None:
    code, told = demo(tmp_path, "--corrupt")
    assert code == 1, told
    assert "a sent wrong bytes; quarantined" in told
    assert "digests are right" not in told
    assert "Traceback" not in told
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
