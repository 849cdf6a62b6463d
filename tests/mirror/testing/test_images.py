"""The images that tests and the demo are made of are real ones."""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
import subprocess
import tarfile
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from peili.mirror import Digest
from peili.mirror.oci.children import host_platform
from peili.mirror.testing.images import Image, make_layout, pack_tar


def read_json(path: Path) -> Any:
    return json.loads(path.read_bytes())


def test_every_blob_is_what_its_name_says(tmp_path: Path) -> None:
    image = make_layout(tmp_path, layers=[16, 511, 512, 100_000], platforms=["linux/amd64", "linux/arm64"])
    assert len(image.blobs) == 1 + 2 * 6
    for blob in image.blobs:
        data = image.blob_path(blob.digest).read_bytes()
        assert (Digest.of(data), len(data)) == (blob.digest, blob.size)
    assert {path.name for path in (tmp_path / "blobs" / "sha256").iterdir()} == {
        blob.digest.encoded for blob in image.blobs
    }


@pytest.mark.parametrize("compress", [False, True])
def test_a_layer_is_a_tar_of_one_random_file(tmp_path: Path, compress: bool) -> None:
    image = make_layout(tmp_path, layers=[70_000], compress=compress)
    data = image.blob_path(image.layers[0].digest).read_bytes()
    unpacked = gzip.decompress(data) if compress else data
    config = read_json(image.blob_path(image.config.digest))
    assert config["rootfs"]["diff_ids"] == [f"sha256:{hashlib.sha256(unpacked).hexdigest()}"]
    with tarfile.open(fileobj=BytesIO(unpacked)) as archive:
        assert [(each.name, each.size) for each in archive] == [("layer-0.bin", 70_000)]
    assert image.layers[0].size > 70_000


def test_a_seed_makes_the_same_image_again(tmp_path: Path) -> None:
    def make(name: str, seed: int | None) -> Image:
        return make_layout(tmp_path / name, layers=[5000], compress=True, seed=seed)

    assert make("a", 1).target == make("b", 1).target
    assert make("c", 1).target != make("d", 2).target
    assert make("e", None).target != make("f", None).target


def test_names_are_entries_of_the_index(tmp_path: Path) -> None:
    old = make_layout(tmp_path, layers=[1], tags=["v1", "docker.io/library/demo:v1"], annotations={"by": "us"})
    new = make_layout(tmp_path, layers=[2], tags=["v1"])
    entries = read_json(tmp_path / "index.json")["manifests"]
    assert [(entry["digest"], entry["annotations"]) for entry in entries] == [
        (
            old.target.digest,
            {
                "by": "us",
                "io.containerd.image.name": "docker.io/library/demo:v1",
                "org.opencontainers.image.ref.name": "v1",
            },
        ),
        (new.target.digest, {"org.opencontainers.image.ref.name": "v1"}),
    ]


def test_this_machine_is_the_only_platform_unless_told(tmp_path: Path) -> None:
    image = make_layout(tmp_path, layers=[1])
    config = read_json(image.blob_path(image.config.digest))
    assert f"{config['os']}/{config['architecture']}" in host_platform()
    assert image.target == image.manifest


@pytest.mark.skipif(shutil.which("skopeo") is None, reason="needs skopeo")
def test_a_client_that_is_not_ours_reads_it(tmp_path: Path) -> None:
    make_layout(tmp_path / "layout", layers=[1000, 2000], tags=["docker.io/library/demo:v1"], compress=True)
    archive = pack_tar(tmp_path / "layout", tmp_path / "image.tar")
    for source in (f"oci:{tmp_path}/layout:v1", f"oci-archive:{archive}:v1"):
        copy = ["skopeo", "copy", "--quiet", source, f"dir:{tmp_path}/copy"]
        subprocess.run(copy, check=True, capture_output=True, timeout=60)
