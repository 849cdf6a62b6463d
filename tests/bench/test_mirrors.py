"""The measured mirrors are real: each is a host of its own, and TLS admits only clients with a certificate."""

from __future__ import annotations

import shutil
import ssl
from pathlib import Path

import httpx
import pytest
from bench.clients import Clients, Target
from bench.mirrors import empty_peers, tls_holder
from bench.setting import Setting, blob_path
from tests.lab.processes import ENVIRONMENT
from tests.support.certificates import make_certificate
from tests.support.plain_http import NO_AUTHORITIES

from peili.mirror.peer_api.peers import IDENTITY_HEADER


def test_each_of_many_mirrors_is_a_host(tmp_path: Path) -> None:
    with (
        empty_peers(tmp_path / "log", 5) as urls,
        httpx.Client(verify=NO_AUTHORITIES, timeout=60, trust_env=False) as client,
    ):
        answers = [client.head(f"{url}/_router/keys/sha256:{'0' * 64}") for url in urls]
    assert [each.status_code for each in answers] == [404] * 5
    assert len({each.headers[IDENTITY_HEADER] for each in answers}) == 5


@pytest.mark.skipif(shutil.which("openssl", path=ENVIRONMENT["PATH"]) is None, reason="not installed: openssl")
def test_mutual_tls_admits_only_clients_with_a_certificate(tmp_path: Path) -> None:
    setting = Setting(tmp_path, quick=True)
    image = setting.small[0]
    blob = image.layers[0]
    certificate = make_certificate(tmp_path / "certificates")
    with Clients() as clients, tls_holder(tmp_path / "log", image.path, certificate) as (port, _):
        moved = clients.transfer(Target(port, blob_path(blob), certificate.files()), digest=blob.digest)
        assert moved.size == blob.size
        client_context = ssl.create_default_context(cafile=certificate.ca)
        with (
            httpx.Client(verify=client_context, timeout=60, trust_env=False) as client,
            pytest.raises(httpx.TransportError),
        ):
            client.get(f"https://127.0.0.1:{port}{blob_path(blob)}")
