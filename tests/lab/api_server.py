"""A real Kubernetes API server on loopback, on Debian's etcd, without controllers: the tests make the objects."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from tests.kubernetes_programs import has_programs, program
from tests.lab.processes import Process, wait_for
from tests.program_cache import SEARCH_PATH
from tests.support.certificates import make_certificate
from tests.support.directories import short_directory
from tests.support.plain_http import NO_AUTHORITIES
from tests.support.ports import free_ports

HAS_KUBERNETES = has_programs() and shutil.which("etcd", path=SEARCH_PATH) is not None
_ADMIN_TOKEN = "the-admin-of-the-tests"


class ApiServer:
    """The API server. It runs while `api_server` is entered.

    Attributes:
        url: Its URL.
        ca: The certificate of its authority.
        admin: A client that may do everything.
        token_file: A file with the token of that client.
    """

    def __init__(self, url: str, etcd_url: str, ca: Path, directory: Path) -> None:
        self.url = url
        self.ca = ca
        self.token_file = directory / "admin-token"
        self.token_file.write_text(_ADMIN_TOKEN)
        self._etcd_url = etcd_url
        context = ssl.create_default_context(cafile=ca)
        headers = {"Authorization": f"Bearer {_ADMIN_TOKEN}"}
        self.admin = httpx.Client(base_url=url, headers=headers, verify=context, timeout=60, trust_env=False)

    def apply(self, path: str, item: Mapping[str, Any]) -> None:
        """Create the object in the collection `path`, or replace what the tests have set of it before."""
        answer = self.admin.patch(
            f"{path}/{item['metadata']['name']}",
            params={"fieldManager": "tests", "force": "true"},
            headers={"Content-Type": "application/apply-patch+yaml"},
            json=item,
        )
        assert answer.is_success, answer.text

    def delete(self, path: str) -> None:
        """Delete the object at `path`."""
        answer = self.admin.delete(path)
        assert answer.is_success, answer.text

    def create_namespace(self, name: str) -> None:
        self.apply("/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})

    def token(self, namespace: str, account: str) -> str:
        """Return a new token of a service account, as the kubelet gets it for a pod."""
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token"
        answer = self.admin.post(path, json={"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest"})
        assert answer.is_success, answer.text
        return str(answer.json()["status"]["token"])

    def forget_history(self) -> None:
        """Make the server forget the changes so far, as it does after five minutes: it knows only how things are."""
        with httpx.Client(verify=NO_AUTHORITIES, base_url=self._etcd_url, timeout=60, trust_env=False) as etcd:
            now = etcd.post("/v3/kv/range", json={"key": "AA=="}).json()["header"]["revision"]
            etcd.post("/v3/kv/compaction", json={"revision": now, "physical": True}).raise_for_status()


@contextmanager
def api_server() -> Generator[ApiServer]:
    """Run an API server for the tests of one file. It takes several seconds to start."""
    with short_directory() as directory:
        port, client_port, peer_port = free_ports(3)
        server = make_certificate(directory / "tls")
        etcd_url = f"http://127.0.0.1:{client_port}"
        etcd = Process(_etcd(directory, etcd_url, f"http://127.0.0.1:{peer_port}"), directory / "etcd.log")
        apiserver = Process(_apiserver(directory, port, etcd_url, server.cert, server.key), directory / "apiserver.log")
        api = ApiServer(f"https://127.0.0.1:{port}", etcd_url, server.ca, directory)
        try:
            wait_for(lambda: _is_ready(api, apiserver), "the API server is ready", pause=0.1)
            yield api
        finally:
            api.admin.close()
            apiserver.kill()
            etcd.kill()


def _is_ready(api: ApiServer, process: Process) -> bool:
    assert process.is_running, process.output()
    try:
        return api.admin.get("/readyz").is_success
    except httpx.TransportError:
        return False


def _etcd(directory: Path, client_url: str, peer_url: str) -> list[str]:
    flags = {
        "data-dir": directory / "etcd",
        "listen-client-urls": client_url,
        "advertise-client-urls": client_url,
        "listen-peer-urls": peer_url,
        "initial-advertise-peer-urls": peer_url,
        "initial-cluster": f"default={peer_url}",
    }
    return ["etcd", *(f"--{name}={value}" for name, value in flags.items())]


def _apiserver(directory: Path, port: int, etcd_url: str, cert: Path, key: Path) -> list[str]:
    tokens, account_key = directory / "tokens.csv", directory / "accounts.pem"
    tokens.write_text(f'{_ADMIN_TOKEN},admin,admin,"system:masters"\n')
    command = ["openssl", "genrsa", "-out", str(account_key), "2048"]
    subprocess.run(command, check=True, capture_output=True)
    flags = {
        "etcd-servers": etcd_url,
        "bind-address": "127.0.0.1",
        "secure-port": port,
        "tls-cert-file": cert,
        "tls-private-key-file": key,
        "cert-dir": directory,
        "token-auth-file": tokens,
        "authorization-mode": "RBAC",
        "service-account-issuer": "https://kubernetes.default.svc",
        "service-account-key-file": account_key,
        "service-account-signing-key-file": account_key,
        "service-cluster-ip-range": "10.96.0.0/16",
        "endpoint-reconciler-type": "none",
        # Without its cache, the server gets the changes from etcd, whose history a test can make it forget.
        "watch-cache-sizes": "endpointslices.discovery.k8s.io#0",
    }
    return [program("kube-apiserver"), *(f"--{name}={value}" for name, value in flags.items())]
