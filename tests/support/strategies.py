"""Hypothesis strategies for references and digests that the OCI specs allow."""

from __future__ import annotations

from hypothesis import strategies as st

from peili.mirror import Reference

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
