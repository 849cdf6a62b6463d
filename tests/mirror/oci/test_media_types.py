"""Manifests and indexes are detected by their content."""

from __future__ import annotations

import json
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peili.mirror.oci.references import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    DOCKER_SCHEMA1,
    OCI_INDEX,
    OCI_MANIFEST,
    OCTET_STREAM,
    detect_media_type,
    is_manifest,
    is_media_type,
)

ARTIFACT = "application/vnd.oci.artifact.manifest.v1+json"
NO_TYPES = [
    "text",
    "/",
    "text/",
    "/html",
    "a/b/c",
    " a/b",
    "a/b ",
    "a/b; c=d",
    "a/b\r\nX: y",
    "a/b\n",
    "ä/b",
    "a/-b",
    "*/*",
    "a/" + "b" * 128,
    "a" * 128 + "/b",
]
MANIFESTS = [OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda deeper: st.lists(deeper) | st.dictionaries(st.text(), deeper),
    max_leaves=10,
)


@pytest.mark.parametrize(
    ("document", "media_type"),
    [
        *[({"schemaVersion": 2, "mediaType": each}, each) for each in MANIFESTS],
        ({"schemaVersion": 2, "manifests": []}, OCI_INDEX),
        ({"schemaVersion": 2, "layers": [], "config": {}}, OCI_MANIFEST),
        ({"schemaVersion": 1, "fsLayers": []}, DOCKER_SCHEMA1),
        ({"schemaVersion": 2, "mediaType": "text/html", "manifests": []}, "text/html"),
        ({"mediaType": ARTIFACT, "blobs": []}, ARTIFACT),
        ({"schemaVersion": 3, "mediaType": ARTIFACT}, ARTIFACT),
        ({"schemaVersion": 2, "mediaType": OCTET_STREAM, "manifests": []}, OCTET_STREAM),
        ({"mediaType": OCI_INDEX, "manifests": []}, OCTET_STREAM),
        *[({"schemaVersion": 2, "mediaType": each, "layers": [], "config": {}}, OCTET_STREAM) for each in NO_TYPES],
        ({"schemaVersion": 2, "layers": []}, OCTET_STREAM),
        ({"schemaVersion": 2, "mediaType": 7}, OCTET_STREAM),
        ({"manifests": []}, OCTET_STREAM),
        ({"architecture": "amd64", "os": "linux", "rootfs": {}}, OCTET_STREAM),
        ([], OCTET_STREAM),
    ],
)
def test_documents_are_distinguished(document: object, media_type: str) -> None:
    assert detect_media_type(json.dumps(document).encode()) == media_type


def _expected(document: object, detected: str) -> bool:
    """Whether a document may be of the type that was detected."""
    stated = cast("dict[str, Any]", document).get("mediaType") if isinstance(document, dict) else None
    return detected == OCTET_STREAM or is_manifest(detected) or (detected == stated and is_media_type(detected))


@given(st.from_regex(r"[a-z0-9][a-z0-9!#$&^_.+-]{0,126}/[a-z0-9][a-z0-9!#$&^_.+-]{0,126}", fullmatch=True))
def test_a_manifest_of_an_unknown_type_is_of_the_type_that_it_states(media_type: str) -> None:
    assert detect_media_type(json.dumps({"mediaType": media_type}).encode()) == media_type


@given(st.text() | st.text("ab/+.-; \r\n"))
def test_malformed_media_types_are_not_accepted(text: str) -> None:
    if is_media_type(text):
        assert text.isascii()
        assert text.isprintable()
        assert " " not in text
        assert text.count("/") == 1


@given(st.binary() | st.binary().map(lambda data: b"{" + data))
def test_detection_never_fails_on_bytes(data: bytes) -> None:
    assert detect_media_type(data) == OCTET_STREAM or is_manifest(detect_media_type(data))


@given(
    st.fixed_dictionaries(
        {"schemaVersion": st.sampled_from([1, 2, "2", None])},
        optional={"mediaType": st.sampled_from(MANIFESTS) | JSON, "manifests": JSON, "layers": JSON, "config": JSON},
    )
)
def test_detection_never_fails_on_documents(document: dict[str, Any]) -> None:
    assert _expected(document, detect_media_type(json.dumps(document).encode()))


@given(st.sampled_from(MANIFESTS), st.dictionaries(st.text(), JSON), st.integers(0, 4))
def test_a_manifest_has_the_type_that_it_states(media_type: str, rest: dict[str, Any], spaces: int) -> None:
    document = {**rest, "schemaVersion": 2, "mediaType": media_type}
    assert detect_media_type(b" " * spaces + json.dumps(document, indent=spaces).encode()) == media_type


def test_deeply_nested_brackets_are_no_manifest() -> None:
    assert detect_media_type(b'{"a":' * 100_000) == OCTET_STREAM
