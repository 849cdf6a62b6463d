"""Hypothesis strategies: references and digests that the OCI specs allow, and documents that they may not allow."""

from __future__ import annotations

import json

from hypothesis import strategies as st

from peili.mirror import Reference
from peili.mirror.oci.references import DOCKER_LIST, DOCKER_MANIFEST, DOCKER_SCHEMA1, OCI_INDEX, OCI_MANIFEST

_HEX = "0123456789abcdef"

DIGESTS = st.one_of(
    st.text(_HEX, min_size=64, max_size=64).map(lambda encoded: f"sha256:{encoded}"),
    st.text(_HEX, min_size=128, max_size=128).map(lambda encoded: f"sha512:{encoded}"),
)
_COMPONENT = st.from_regex(r"[a-z0-9]{1,8}((\.|_|__|-{1,3})[a-z0-9]{1,8}){0,2}", fullmatch=True)
REPOSITORIES = st.lists(_COMPONENT, min_size=1, max_size=4).map("/".join)
_HOSTS = st.one_of(
    st.just("localhost"),
    st.from_regex(r"[a-zA-Z0-9]{1,8}(-[a-z0-9]{1,4})?(\.[a-z0-9]{1,8}){1,3}", fullmatch=True),
    st.ip_addresses(v=6).map(lambda address: f"[{address}]"),
)
REGISTRIES = st.tuples(_HOSTS, st.sampled_from(["", ":80", ":5000", ":65535"])).map("".join)
"""Registries that a parser can distinguish from the first component of a repository. An IPv6 address has colons."""
TAGS = st.from_regex(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,40}", fullmatch=True)
REFERENCES = st.builds(Reference, REGISTRIES, REPOSITORIES, TAGS)

_NAMES = st.sampled_from(
    [
        "schemaVersion",
        "mediaType",
        "config",
        "layers",
        "fsLayers",
        "blobSum",
        "blobs",
        "manifests",
        "subject",
        "platform",
        "os",
        "architecture",
        "variant",
        "digest",
        "size",
        "urls",
        "annotations",
        "tags",
        "metadata",
        "items",
        "endpoints",
        "addresses",
        "ports",
    ]
)
_SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, 1, 2, -1, 2**63, 10**400, 0.5, 1e300, float("inf"), float("nan")]),
    st.sampled_from([OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST, DOCKER_SCHEMA1, "linux", "amd64", ""]),
    DIGESTS,
    st.text(max_size=8),
    st.just("\ud800"),
)
JSON = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_NAMES | st.text(max_size=4), inner, max_size=6),
    max_leaves=12,
)
"""Any JSON value. Often it has the names and the values of documents of the OCI specs, but at any place."""


def documents(*names: str) -> st.SearchStrategy[bytes]:
    """Return what another program may send where a JSON object with these names is expected."""
    fields = st.fixed_dictionaries({}, optional=dict.fromkeys(names, JSON))
    return st.one_of(fields.map(_dump), JSON.map(_dump), st.binary(max_size=64), _ODD)


def _dump(value: object) -> bytes:
    return json.dumps(value).encode()


def _deep(name: str, depth: int) -> bytes:
    return f'{{"{name}": {"[" * depth}{"]" * depth}}}'.encode()


_ODD = st.one_of(
    st.sampled_from([b"", b"\xff\xfe{\x00}\x00", b"\xef\xbb\xbf{}"]),
    st.just(5000).map(lambda digits: b'{"size": ' + b"9" * digits + b"}"),  # more than int() takes
    st.builds(_deep, st.sampled_from(["digest", "mediaType", "config"]), st.sampled_from([100, 900, 10_000])),
)
