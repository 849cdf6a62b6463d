"""The references serve the same bytes as peili."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from bench.clients import Clients, Target
from bench.references import registry
from bench.setting import REPOSITORY, Setting, registry_blob_path, registry_manifest_path
from tests.lab.processes import ENVIRONMENT
from tests.support.directories import short_directory

pytestmark = pytest.mark.skipif(
    shutil.which("docker-registry", path=ENVIRONMENT["PATH"]) is None, reason="not installed: docker-registry"
)


def test_docker_registry_and_its_cache_serve_the_files_in_its_storage() -> None:
    with short_directory() as directory:
        _has_what_is_put_into_its_storage(Setting(directory, quick=True))


def _has_what_is_put_into_its_storage(setting: Setting) -> None:
    image = setting.small[0]
    with (
        Clients() as clients,
        registry(setting.new("registry"), (image, REPOSITORY)) as (port, _),
        registry(setting.new("cache"), upstream=port) as (cache, _),
    ):
        for each in (port, cache):
            for layer in image.layers:
                moved = clients.transfer(Target(each, registry_blob_path(layer)), digest=layer.digest)
                assert moved.size == layer.size
            clients.requests(each, "HEAD", [registry_manifest_path(image)], connections=1)


def test_blobs_have_exactly_the_stated_size(tmp_path: Path) -> None:
    setting = Setting(tmp_path, quick=True)
    assert {layer.size for image in setting.small for layer in image.layers} == {4096}
    assert setting.large.layers[0].size == 32 << 20
    many = setting.many(200)
    assert sum(len(image.blobs) for image in many) == 200
