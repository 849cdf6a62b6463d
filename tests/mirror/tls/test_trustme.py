"""Hosts with certificates that trustme makes, which have other extensions and chains than those of openssl(1)."""

# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false
# trustme does not state all its types.
from __future__ import annotations

import datetime as dt
import ssl
from pathlib import Path

import pytest
import trustme
from tests.mirror.tls.tls_hosts import status_at, tls_host, until_pulled
from typing_extensions import override

from peili.mirror import PeerCertificates, PeerTLS, TLSContexts

pytestmark = pytest.mark.anyio


def certificates(
    authority: trustme.CA, directory: Path, *names: str, trusted: trustme.CA | None = None
) -> PeerCertificates:
    """Issue a certificate for a host, which trusts `trusted`, by default the same authority."""
    directory.mkdir()
    issued = authority.issue_cert(*names)
    (directory / "chain.pem").write_bytes(b"".join(each.bytes() for each in issued.cert_chain_pems))
    issued.private_key_pem.write_to_path(str(directory / "key.pem"))
    (trusted or authority).cert_pem.write_to_path(str(directory / "ca.pem"))
    return PeerCertificates(directory / "ca.pem", directory / "chain.pem", directory / "key.pem")


@pytest.mark.parametrize("key_type", [trustme.KeyType.ECDSA, trustme.KeyType.RSA])
async def test_an_intermediate_authority_issues_the_certificates(key_type: trustme.KeyType, tmp_path: Path) -> None:
    root = trustme.CA(key_type=key_type)
    middle = root.create_child_ca(key_type=key_type)
    one_tls, two_tls = (certificates(middle, tmp_path / name, "127.0.0.1", trusted=root) for name in ("one", "two"))
    async with tls_host(one_tls, "one") as one, tls_host(two_tls, "two") as two:
        two.know(one)
        await until_pulled(two, one.store.add(b"shared").digest)


class OwnContexts(PeerTLS):
    """The contexts of an agent, which changes them itself."""

    def __init__(self, authority: trustme.CA) -> None:
        server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        server.verify_mode = ssl.CERT_REQUIRED
        self._contexts = TLSContexts(server, client)
        self.renew(authority)

    def renew(self, authority: trustme.CA) -> None:
        own = authority.issue_cert("127.0.0.1")
        for context in (self._contexts.server, self._contexts.client):
            authority.configure_trust(context)
            own.configure_cert(context)

    @override
    def contexts(self) -> TLSContexts:
        return self._contexts


async def test_an_agent_goes_on_to_own_its_contexts() -> None:
    before, after = trustme.CA(), trustme.CA()
    one_tls, two_tls = OwnContexts(before), OwnContexts(before)
    async with tls_host(one_tls, "one") as one, tls_host(two_tls, "two") as two:
        two.know(one)
        await until_pulled(two, one.store.add(b"shared").digest)
        for tls in (one_tls, two_tls):
            tls.renew(after)
        await until_pulled(two, one.store.add(b"later").digest)
        with pytest.raises(OSError, match=r".*"):
            await status_at(one.port, ssl.create_default_context(), "127.0.0.1")


async def test_a_certificate_of_another_authority_or_none_is_refused(tmp_path: Path) -> None:
    right, other = trustme.CA(), trustme.CA()
    one_tls = certificates(right, tmp_path / "one", "127.0.0.1")
    two_tls = certificates(other, tmp_path / "two", "127.0.0.1", trusted=right)
    async with tls_host(one_tls, "one") as one, tls_host(two_tls, "two") as two:
        one.know(two)
        two.know(one)
        assert await two.pull(one.store.add(b"of one").digest) == 404
        assert await one.pull(two.store.add(b"of two").digest) == 404
        without = ssl.create_default_context()
        right.configure_trust(without)
        with pytest.raises(OSError, match=r".*"):
            await status_at(one.port, without, "127.0.0.1")
        old = ssl.create_default_context()
        right.configure_trust(old)
        right.issue_cert("two.example").configure_cert(old)
        old.maximum_version = ssl.TLSVersion.TLSv1_2
        with pytest.raises(OSError, match=r".*"):
            await status_at(one.port, old, "127.0.0.1")


async def test_a_certificate_that_has_expired_is_refused(tmp_path: Path) -> None:
    authority = trustme.CA()
    one_tls = certificates(authority, tmp_path / "one", "127.0.0.1")
    expired = ssl.create_default_context()
    authority.configure_trust(expired)
    yesterday = dt.datetime.now(dt.UTC) - dt.timedelta(days=1)
    authority.issue_cert("two.example", not_after=yesterday).configure_cert(expired)
    async with tls_host(one_tls, "one") as one:
        with pytest.raises(OSError, match=r".*"):
            await status_at(one.port, expired, "127.0.0.1")
