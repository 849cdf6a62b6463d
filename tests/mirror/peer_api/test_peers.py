"""Which values a `Peer` accepts."""

from __future__ import annotations

import ssl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peili.mirror import Peer, base_url

URL = "https://10.0.0.3:5051"
TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
ALMOST_NAMES = st.text("ab-_.:*%/\x00 \n12fß漢", max_size=12)


@pytest.mark.parametrize(
    "name", ["node-1", "node_1.cluster.example", "NODE", "10.0.0.3", "fd00::3", "bücher.example", "a" * 63, "1.2"]
)
def test_tls_name_is_a_host_name_or_an_address(name: str) -> None:
    assert Peer("a", (URL,), name).tls_name == name


@pytest.mark.parametrize(
    "name",
    [
        *("", "a\x00b", ".a", "a..b", "a.", "a b", "a\n", "*.example", "a/b", "a:1", "fe80::1%eth0", "::1%\x00"),
        *("\ud800", "a" * 64, ".".join(["a" * 60] * 5), "ü" * 100_000),
    ],
)
def test_other_tls_names_are_refused_in_one_line(name: str) -> None:
    with pytest.raises(ValueError, match=r"^not a name for a certificate: '.*'; expected .*$"):
        Peer("a", (URL,), name)


@given(ALMOST_NAMES)
def test_the_ssl_module_accepts_every_accepted_tls_name(name: str) -> None:
    try:
        peer = Peer("a", (URL,), name)
    except ValueError:
        return
    TLS.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname=peer.tls_name)


@pytest.mark.parametrize(
    "host", ["a", "a.b.", "A_1", "127.1", "10.0.0.3", "[::1]", "[fe80::1%eth0]", "münchen.example", "a" * 63]
)
def test_the_host_of_a_url_is_a_name_or_an_address(host: str) -> None:
    assert base_url(f"https://{host}:5051/") == f"https://{host}:5051"


@pytest.mark.parametrize("host", ["a..b", ".", "10.0.0.300", "[::g]", "[1]", "a" * 64, "a%41", "a.-.b" * 60, "a,b"])
def test_a_host_that_can_not_be_looked_up_is_refused(host: str) -> None:
    with pytest.raises(ValueError, match="not a base URL: "):
        base_url(f"https://{host}:5051")
