"""Scanning an OCI layout, and parsing its JSON."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peili.mirror import Digest, Reference
from peili.mirror.testing.images import Image, make_layout
from peili.stores.oci_layout import scanner as scanner_module
from peili.stores.oci_layout.scanner import LayoutScanner, parse_index, parse_manifest, parse_tag

DEMO = "docker.io/library/demo:v1"


@pytest.fixture
def image(tmp_path: Path) -> Image:
    return make_layout(tmp_path / "layout", layers=[3000, 500], tags=[DEMO], seed=1)


def test_a_full_reference_may_be_the_ref_name() -> None:
    assert parse_tag({"org.opencontainers.image.ref.name": DEMO}, None) == Reference.parse(DEMO)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"manifests": 1}', "[" * 100_000], ids=lambda text: text[:9])
def test_a_malformed_index_has_no_entries(text: str) -> None:
    with pytest.raises(ValueError, match=r"JSON|nested|manifests|property name"):
        parse_index(text.encode())


class Clock:
    """A clock that the test sets."""

    def __init__(self, now: int) -> None:
        self.now = now

    def time_ns(self) -> int:
        return self.now


def test_an_unreferenced_blob_is_complete_one_second_after_the_last_write(
    image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    loose = Digest.of(b"loose")
    path = image.blob_path(loose)
    path.write_bytes(b"loose")
    written = path.stat().st_mtime_ns
    monkeypatch.setattr(scanner_module, "time", clock := Clock(written))
    scanner = LayoutScanner(image.path, None, logging.getLogger(__name__))
    for age, is_complete in ((0, False), (999_999_999, False), (1_000_000_000, True)):
        clock.now = written + age
        snapshot = scanner.scan()
        assert snapshot is not None
        assert (loose in snapshot.blobs) is is_complete


@given(
    st.binary()
    | st.recursive(
        st.none() | st.integers() | st.text(),
        lambda deeper: (
            st.lists(deeper)
            | st.dictionaries(
                st.sampled_from(["manifests", "layers", "config", "digest", "size", "mediaType", "annotations"]),
                deeper,
            )
        ),
    ).map(lambda document: json.dumps(document).encode())
)
def test_any_json_is_parsed_or_a_value_error(data: bytes) -> None:
    for parse in (parse_index, parse_manifest):
        try:
            for descriptor in parse(data):
                assert isinstance(descriptor.size, int)
                parse_tag(descriptor.annotations, "docker.io/library/redis")
        except ValueError:
            pass
