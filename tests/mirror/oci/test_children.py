"""What a runtime requests after a manifest or an index."""

from __future__ import annotations

import json
from typing import Any

import pytest

from peili.mirror.oci.checked_children import checked_children_of
from peili.mirror.oci.children import Children, all_children_of, children_of
from peili.mirror.oci.references import DOCKER_LIST, OCI_INDEX, OCI_MANIFEST, Digest

A, B, C, D = (Digest.of(each.encode()) for each in "abcd")


def descriptor(digest: str, **more: Any) -> dict[str, Any]:
    return {"digest": digest, "mediaType": OCI_MANIFEST, "size": 1, **more}


def entry(digest: str, architecture: str, variant: str | None = None, system: str = "linux") -> dict[str, Any]:
    platform = {"os": system, "architecture": architecture, **({"variant": variant} if variant else {})}
    return descriptor(digest, platform=platform)


def read(document: Any, platform: str = "linux/amd64") -> Children:
    return children_of(json.dumps(document).encode(), platform)


def test_a_manifest_has_its_configuration_and_its_layers() -> None:
    layer, foreign = descriptor(B), descriptor(C, urls=["https://example.com/layer"])
    assert read({"config": descriptor(A), "layers": [layer, layer, foreign]}) == Children((), (A, B))
    assert read({"fsLayers": [{"blobSum": D}, {"blobSum": D}]}) == Children((), (D,))
    assert read({"blobs": [descriptor(A)]}) == Children()


@pytest.mark.parametrize("media_type", [OCI_INDEX, DOCKER_LIST])
def test_an_index_has_what_is_for_the_platform(media_type: str) -> None:
    entries = [entry(A, "amd64"), entry(B, "arm64"), entry(C, "amd64", system="windows"), entry(D, "unknown")]
    index = {"mediaType": media_type, "manifests": entries}
    assert read(index) == Children((A,), ())
    assert read(index, "linux/arm64") == Children((B,), ())
    with pytest.raises(ValueError, match="the index has nothing for linux/s390x"):
        read(index, "linux/s390x")


@pytest.mark.parametrize(
    ("platform", "digest"), [("linux/arm/v7", C), ("linux/arm/v6", B), ("linux/arm/v5", A), ("linux/arm/v8", C)]
)
def test_the_newest_variant_that_runs_is_needed(platform: str, digest: Digest) -> None:
    entries = [entry(A, "arm", "v5"), entry(B, "arm", "v6"), entry(C, "arm", "v7")]
    assert read({"manifests": entries}, platform) == Children((digest,), ())


def test_entries_without_a_platform_are_needed_and_may_be_blobs() -> None:
    entries = [entry(A, "amd64", "v2"), descriptor(B), descriptor(C, mediaType="text/plain")]
    assert read({"manifests": entries}) == Children((A, B), (C,))


@pytest.mark.parametrize(
    "document",
    [
        [],
        {"config": []},
        {"config": {}, "layers": []},
        {"layers": {}},
        {"layers": [{"digest": "sha256:1"}]},
        {"manifests": [1]},
        {"manifests": [{"platform": "linux/amd64"}]},
        {"manifests": []},
    ],
)
def test_a_malformed_document_is_an_error(document: Any) -> None:
    with pytest.raises(ValueError, match=r"digest|expected|nothing for"):
        read(document)


def test_what_is_malformed_hides_nothing_else_of_a_document() -> None:
    odd: list[Any] = [None, 1, [], {}, {"digest": 1}, {"digest": "sha256:1"}]
    document = {"layers": [*odd, descriptor(A)], "config": "x", "fsLayers": [*odd, {"blobSum": B}], "manifests": None}
    assert all_children_of(json.dumps(document).encode()) == Children((), (A, B))
    assert all_children_of(json.dumps({"manifests": [*odd, descriptor(C)], "layers": {}}).encode()) == Children((C,))


@pytest.mark.parametrize("media_type", [1, ["foreign"], {"a": "b"}, True])
def test_a_registry_took_no_manifest_with_such_a_media_type(media_type: Any) -> None:
    for document in ({"mediaType": media_type}, {"layers": [descriptor(A, mediaType=media_type)]}):
        with pytest.raises(ValueError, match="no text"):
            checked_children_of(json.dumps(document).encode())
