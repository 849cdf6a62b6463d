"""Hosts with the certificates of an operator: who is a peer, and what happens when the files change."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import shutil
import ssl
import subprocess
from pathlib import Path

import httpx
import pytest
from tests.mirror.tls.tls_hosts import status_at, tls_host, until_pulled
from tests.support.certificates import Authority, Certificate

from peili.mirror import ConfigError, Limits, Peer, PeerCertificates, PeerClient, PeerUnavailable
from peili.mirror.tls import from_files
from peili.mirror.tls.identities import certificate_names

pytestmark = pytest.mark.anyio


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "authority")


def certificates(files: Certificate, *names: str, crl: Path | None = None) -> PeerCertificates:
    return PeerCertificates(files.ca, files.cert, files.key, names, crl=crl)


async def test_hosts_with_certificates_of_one_authority_pull_from_each_other(
    authority: Authority, tmp_path: Path
) -> None:
    one_tls, two_tls = (certificates(authority.issue(tmp_path / name, "127.0.0.1")) for name in ("one", "two"))
    async with tls_host(one_tls, "one") as one, tls_host(two_tls, "two") as two:
        two.know(one)
        await until_pulled(two, one.store.add(b"shared").digest)


async def test_a_host_with_a_certificate_of_another_authority_is_refused(authority: Authority, tmp_path: Path) -> None:
    strange = Authority(tmp_path / "strange").issue(tmp_path / "two", "127.0.0.1")
    shutil.copy(authority.cert, strange.ca)  # it trusts the right one
    one_tls, two_tls = certificates(authority.issue(tmp_path / "one", "127.0.0.1")), certificates(strange)
    async with tls_host(one_tls, "one") as one, tls_host(two_tls, "two") as two:
        two.know(one)
        one.know(two)
        assert await two.pull(one.store.add(b"of one").digest) == 404
        assert await one.pull(two.store.add(b"of two").digest) == 404


async def test_the_certificate_of_a_peer_must_show_the_host_of_its_url_or_its_tls_name(
    authority: Authority, tmp_path: Path
) -> None:
    one_tls = certificates(authority.issue(tmp_path / "one", "one.example"))
    two_tls = certificates(authority.issue(tmp_path / "two", "127.0.0.1"))
    async with tls_host(one_tls, "one") as one, tls_host(two_tls, "two") as two:
        added = one.store.add(b"of one")
        for tls_name, status in ((None, 404), ("two.example", 404), ("one.example", 200)):
            two.know(one, tls_name=tls_name)
            assert await two.pull(added.digest) == status


NODES = r"spiffe://cluster\.example/node/[a-z]+"


@pytest.mark.parametrize(
    ("shown", "status"),
    [
        (["spiffe://cluster.example/node/two"], 200),
        (["other.example", "spiffe://cluster.example/node/two"], 200),
        (["spiffe://cluster.example/node/two/pod"], 404),  # a pattern is for the whole name
        (["spiffe://clusterxexample/node/two"], 404),
        (["spiffe://cluster.example/app/two"], 404),
        (["10.0.0.1"], 404),
    ],
)
async def test_only_hosts_that_show_one_of_the_names_are_peers(
    shown: list[str], status: int, authority: Authority, tmp_path: Path
) -> None:
    """In both directions. The host of the URL does not count then."""
    one_tls = certificates(authority.issue(tmp_path / "one", "spiffe://cluster.example/node/one"), NODES)
    two_tls = certificates(authority.issue(tmp_path / "two", *shown), r"spiffe://cluster\.example/node/one", ".*two.*")
    async with tls_host(one_tls, "one") as one, tls_host(two_tls, "two") as two:
        two.know(one)
        one.know(two)
        assert await two.pull(one.store.add(b"of one").digest) == status
        assert await one.pull(two.store.add(b"of two").digest) == status


WITH_ID = r"spiffe://cluster\.example/node/(?P<id>.+)"


async def test_a_group_of_the_names_is_the_id_of_the_peer(authority: Authority, tmp_path: Path) -> None:
    one_tls, two_tls = (
        certificates(authority.issue(tmp_path / name, f"spiffe://cluster.example/node/{name}"), WITH_ID, ".*")
        for name in ("one", "two")
    )
    assert one_tls.identity_of(["a.example", "spiffe://cluster.example/node/x"]) == "x"
    assert one_tls.identity_of(["spiffe://cluster.example/node/x", "spiffe://cluster.example/node/y"]) is None
    assert one_tls.identity_of(["a.example"]) is None
    async with tls_host(one_tls, "one") as one, tls_host(two_tls, "two") as two:
        one.know(two)
        two.know(one)
        await until_pulled(two, one.store.add(b"shared").digest)


async def test_a_peer_that_answers_with_another_id_than_its_certificate_shows_is_not_used(
    authority: Authority, tmp_path: Path
) -> None:
    one_tls, false_tls = (
        certificates(authority.issue(tmp_path / name, f"spiffe://cluster.example/node/{name}"), WITH_ID)
        for name in ("one", "false")
    )
    async with tls_host(one_tls, "one") as one, tls_host(false_tls, "two") as false:
        one.know(false)
        assert await one.pull(false.store.add(b"of two").digest) == 404
        async with PeerClient(Limits(connect_timeout=30), tls=one_tls) as client:
            with pytest.raises(PeerUnavailable, match="it answers as 'two', but its certificate shows 'false'"):
                await client.head(Peer("two", (false.url,)), "/v2/", timeout=20)


async def test_the_peer_door_answers_403_to_a_certificate_with_other_names(
    authority: Authority, tmp_path: Path
) -> None:
    app = authority.issue(tmp_path / "app", "app.example")
    async with tls_host(certificates(authority.issue(tmp_path / "one", "127.0.0.1"), r"node-.*"), "one") as one:
        assert b" 403 " in await status_at(one.port, app.client_context(), "127.0.0.1")


async def test_a_tls_name_counts_in_addition_to_the_names(authority: Authority, tmp_path: Path) -> None:
    one_tls = certificates(authority.issue(tmp_path / "one", "One.example", "node-1"))
    two_tls = certificates(authority.issue(tmp_path / "two", "node-2"), "node-.")
    async with tls_host(one_tls, "one") as one, tls_host(two_tls, "two") as two:
        added = one.store.add(b"of one")
        for tls_name, status in (("two.example", 404), ("one.example", 200)):
            two.know(one, tls_name=tls_name)
            assert await two.pull(added.digest) == status


async def test_a_peer_with_an_http_url_is_never_asked(authority: Authority, tmp_path: Path) -> None:
    client = PeerClient(Limits(), tls=certificates(authority.issue(tmp_path / "one", "127.0.0.1")))
    async with client:
        with pytest.raises(PeerUnavailable, match=r"http://127\.0\.0\.1:1 must be an https URL"):
            await client.head(Peer("two", ("http://127.0.0.1:1",)), "/v2/", timeout=5)


async def test_new_files_are_used_for_new_connections_while_a_transfer_runs(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here another authority issues the new certificates."""
    monkeypatch.setattr(from_files, "_REFRESH_INTERVAL", 0.05)
    one_files, two_files = (authority.issue(tmp_path / name, "127.0.0.1") for name in ("one", "two"))
    new = Authority(tmp_path / "new authority")
    async with tls_host(certificates(one_files), "one") as one, tls_host(certificates(two_files), "two") as two:
        two.know(one)
        large, small = one.store.add(bytes(16 << 20)), one.store.add(b"small")
        await until_pulled(two, small.digest)
        url = f"{two.local}/v2/registry.example/demo/blobs/{large.digest}"
        async with two.client.stream("GET", url) as response:
            for files in (one_files, two_files):
                issued = new.issue(tmp_path / "new" / files.cert.parent.name, "127.0.0.1")
                for source, target in ((issued.ca, files.ca), (issued.cert, files.cert), (issued.key, files.key)):
                    source.rename(target)
            await until_answered(one.port, two_files, old=authority.issue(tmp_path / "old", "127.0.0.1"))
            assert len(await response.aread()) == large.size
        await until_pulled(two, one.store.add(b"later").digest)


async def until_answered(port: int, new: Certificate, old: Certificate) -> None:
    """Wait until a host with the certificate `new` is a peer, and none with `old` is one any more."""
    async with asyncio.timeout(60):
        for files, is_peer in ((new, True), (old, False)):
            while await is_answered(port, files) != is_peer:
                pass


async def is_answered(port: int, files: Certificate) -> bool:
    try:
        return b" 200 " in await status_at(port, files.client_context(), "127.0.0.1")
    except OSError:
        return False


async def test_a_revoked_host_is_refused_in_both_directions(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(from_files, "_REFRESH_INTERVAL", 0.05)
    crl = tmp_path / "crl.pem"
    authority.write_revocations(crl)
    one_files, two_files, three_files = (authority.issue(tmp_path / name, "127.0.0.1") for name in ("1", "2", "3"))
    one_tls, two_tls = certificates(one_files, crl=crl), certificates(two_files)
    async with tls_host(one_tls, "one") as one, tls_host(two_tls, "two") as two:
        one.know(two)
        two.know(one)
        await until_pulled(two, one.store.add(b"of one").digest)
        await until_pulled(one, two.store.add(b"of two").digest)
        async with httpx.AsyncClient(verify=two_files.client_context(), trust_env=False, timeout=60) as open_before:
            assert (await open_before.get(f"{one.url}/v2/")).status_code == 200
            authority.write_revocations(crl, two_files)
            await until_answered(one.port, three_files, old=two_files)
            last = await open_before.get(f"{one.url}/v2/")  # may still be answered, but the connection is closed
            assert last.headers["connection"] == "close"
            with pytest.raises((httpx.TransportError, ssl.SSLError)):
                await open_before.get(f"{one.url}/v2/")
        async with asyncio.timeout(60):  # each connection that it still has is good for one request
            while await two.pull(one.store.add(os.urandom(20)).digest) != 404:
                pass
        assert await two.pull(one.store.add(b"of one, later").digest) == 404
        assert await one.pull(two.store.add(b"of two, later").digest) == 404


async def test_nobody_is_a_peer_while_the_list_of_revoked_certificates_has_expired(
    authority: Authority, tmp_path: Path
) -> None:
    crl, two_files = tmp_path / "crl.pem", authority.issue(tmp_path / "two", "127.0.0.1")
    authority.write_revocations(crl, days=-1)
    async with tls_host(certificates(authority.issue(tmp_path / "one", "127.0.0.1"), crl=crl), "one") as one:
        assert not await is_answered(one.port, two_files)


@pytest.mark.parametrize(
    ("has_list", "has_certificate", "problem"),
    [
        (False, False, "{crl} has no usable list of revoked certificates: "),
        (False, True, "{crl} has no list of revoked certificates"),
        (True, True, "{crl} must have lists of revoked certificates only, and no certificate"),
    ],
)
def test_a_file_without_lists_of_revoked_certificates_is_named(
    authority: Authority, tmp_path: Path, *, has_list: bool, has_certificate: bool, problem: str
) -> None:
    crl, strange = tmp_path / "crl.pem", Authority(tmp_path / "strange")
    authority.write_revocations(crl)
    parts = (crl.read_bytes() if has_list else b"", strange.cert.read_bytes() if has_certificate else b"")
    crl.write_bytes(b"".join(parts))
    with pytest.raises(ConfigError, match=re.escape(f"crl: {problem.format(crl=crl)}")):
        certificates(authority.issue(tmp_path / "one", "127.0.0.1"), crl=crl)


async def test_half_written_files_keep_the_old_ones_and_are_logged_once(
    authority: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files, new = (authority.issue(tmp_path / name, "127.0.0.1") for name in ("one", "new"))
    own = certificates(files)
    before = own.contexts()
    with caplog.at_level(logging.INFO, "peili.tls"):
        shutil.copy(new.cert, files.cert)  # the key is still the old one
        for _ in range(2):
            await own.refresh()
            assert own.contexts() is before
        [record] = caplog.records
        assert record.levelname == "ERROR"
        assert "key values mismatch; what was read before stays in use" in record.message
        shutil.copy(new.key, files.key)
        await own.refresh()
        after = own.contexts()
        assert after is not before
        assert len(caplog.records) == 2
        assert caplog.records[1].message.startswith("read again: ")
        await own.refresh()
        assert own.contexts() is after


def problem_with(files: Certificate) -> str:
    with pytest.raises(ConfigError) as caught:
        certificates(files)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("ca", None, "ca: {ca} has no usable certificate: no such file or directory"),
        ("ca", "", "ca: {ca} has no usable certificate: "),
        ("cert", None, "cert: {cert} can't be read: no such file or directory"),
        ("key", None, "key: {key} can't be read: no such file or directory"),
        ("key", "x", "cert: a certificate and its private key, both PEM; {cert} and {key} are not: "),
    ],
)
def test_a_file_that_cannot_be_used_is_named_at_the_start(
    name: str, content: str | None, problem: str, authority: Authority, tmp_path: Path
) -> None:
    files = authority.issue(tmp_path / "one", "127.0.0.1")
    path = Path(files.files()[name])
    path.unlink()
    if content is not None:
        path.write_text(content)
    assert problem.format(**files.files()) in problem_with(files)


def test_an_encrypted_key_is_refused_and_not_asked_for(authority: Authority, tmp_path: Path) -> None:
    files = authority.issue(tmp_path / "one", "127.0.0.1")

    encrypted, encryption = tmp_path / "key", ["-aes256", "-passout", "pass:secret"]
    subprocess.run(["openssl", "pkey", "-in", files.key, *encryption, "-out", encrypted], check=True)
    encrypted.rename(files.key)
    assert "private key" in problem_with(files)


def test_a_malformed_pattern_is_named(authority: Authority, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^names: regular expressions, not 'node-\('"):
        certificates(authority.issue(tmp_path / "one", "127.0.0.1"), "node-(")


def test_names_are_those_of_the_certificate_not_of_its_subject() -> None:
    subject = ((("commonName", "node-1"),),)
    alternatives = (("DNS", "node-2"), ("URI", "spiffe://x"), ("IP Address", "10.0.0.1"), ("email", "node@x"))
    found = certificate_names({"subject": subject, "subjectAltName": alternatives})
    assert found == {"node-2", "spiffe://x", "10.0.0.1"}
    assert certificate_names(None) == frozenset()
