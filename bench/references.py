"""The references: nginx (files, proxy, TLS) and Debian's docker-registry.

They are configured as their packages do, except for ports, folders and access logs. peili writes no access log either.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from tests.lab.processes import Process
from tests.support.certificates import Certificate
from tests.support.ports import free_ports

from bench.processes import running
from peili.mirror import Digest
from peili.mirror.testing.images import Image

_NGINX = """
daemon off; user {user}; worker_processes auto; pid {folder}/pid; error_log {folder}/error.log;
events {{ worker_connections 768; }}
http {{
  access_log off; sendfile on; tcp_nopush on;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  server {{
    listen 127.0.0.1:{port}{listen};
    {server}
  }}
}}
"""

_TLS = """ssl_certificate {certificate.cert}; ssl_certificate_key {certificate.key}; ssl_protocols TLSv1.3;
    ssl_client_certificate {certificate.ca}; ssl_verify_client on;
"""

_PROXY_TLS = """proxy_ssl_certificate {certificate.cert}; proxy_ssl_certificate_key {certificate.key};
    proxy_ssl_protocols TLSv1.3; proxy_ssl_verify on; proxy_ssl_trusted_certificate {certificate.ca};
"""

_REGISTRY = """\
version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage:
  cache: {{blobdescriptor: inmemory}}
  filesystem: {{rootdirectory: {storage}}}
  delete: {{enabled: true}}
  maintenance: {{uploadpurging: {{enabled: false}}}}
http:
  addr: 127.0.0.1:{port}
  secret: bench
  headers: {{X-Content-Type-Options: [nosniff]}}
health: {{storagedriver: {{enabled: true, interval: 10s, threshold: 3}}}}
"""

_PULL_THROUGH = "proxy: {{remoteurl: 'http://127.0.0.1:{upstream}'}}\n"


@contextmanager
def nginx_files(folder: Path, root: Path, certificate: Certificate | None = None) -> Generator[tuple[int, Process]]:
    """Run nginx, which sends the files below `root`. Yields its port and process.

    Args:
        folder: A new folder for its files.
        root: The folder with the content.
        certificate: If it is given, nginx uses mutual TLS.
    """
    tls = "" if certificate is None else _TLS.format(certificate=certificate)
    with _nginx(folder, f"{tls}root {root};", " ssl" if tls else "") as nginx:
        yield nginx


@contextmanager
def nginx_proxy(folder: Path, upstream: int, certificate: Certificate | None = None) -> Generator[tuple[int, Process]]:
    """Run nginx with `proxy_pass` to a port and otherwise the default configuration. Yields its port and process.

    Args:
        folder: A new folder for its files.
        upstream: The port.
        certificate: If it is given, nginx connects to the port with mutual TLS.
    """
    scheme, tls = ("http", "") if certificate is None else ("https", _PROXY_TLS.format(certificate=certificate))
    with _nginx(folder, f"{tls}location / {{ proxy_pass {scheme}://127.0.0.1:{upstream}; }}") as nginx:
        yield nginx


@contextmanager
def _nginx(folder: Path, server: str, listen: str = "") -> Generator[tuple[int, Process]]:
    folder.mkdir()
    [port] = free_ports(1)
    user = "www-data" if os.geteuid() == 0 else "nobody"  # without root, nginx ignores the user
    config = folder / "nginx.conf"
    config.write_text(_NGINX.format(folder=folder, port=port, server=server, listen=listen, user=user))
    command = ["nginx", "-c", str(config), "-e", str(folder / "error.log")]
    with running(command, folder / "log", [port]) as process:
        yield port, process


@contextmanager
def registry(folder: Path, *images: tuple[Image, str], upstream: int | None = None) -> Generator[tuple[int, Process]]:
    """Run docker-registry. Yields its port and process.

    Args:
        folder: A new folder for its files.
        images: The images in its storage, each with its repository.
        upstream: The port of another registry. If it is given, this one is a pull-through cache of the other one.
    """
    folder.mkdir()
    for image, repository in images:
        _put(folder / "storage", image, repository)
    [port] = free_ports(1)
    config = _REGISTRY.format(storage=folder / "storage", port=port)
    if upstream is not None:
        config += _PULL_THROUGH.format(upstream=upstream)
    (folder / "registry.yml").write_text(config)
    with running(["docker-registry", "serve", str(folder / "registry.yml")], folder / "log", [port]) as process:
        yield port, process


def _put(storage: Path, image: Image, repository: str) -> None:
    """Put an image into docker-registry's storage, with hard links to the blobs of its layout."""
    top = storage / "docker/registry/v2"
    of_repository = top / "repositories" / repository
    for blob in image.blobs:
        data = top / "blobs" / _sharded(blob.digest) / "data"
        data.parent.mkdir(parents=True, exist_ok=True)
        if not data.exists():
            data.hardlink_to(image.blob_path(blob.digest))
    manifests = {image.target.digest, *(each.descriptor.digest for each in image.manifests)}
    for blob in image.blobs:
        kind = "_manifests/revisions" if blob.digest in manifests else "_layers"
        _link(of_repository / kind / blob.digest.algorithm / blob.digest.encoded / "link", blob.digest)


def _sharded(digest: Digest) -> str:
    return f"{digest.algorithm}/{digest.encoded[:2]}/{digest.encoded}"


def _link(file: Path, digest: Digest) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(digest)
