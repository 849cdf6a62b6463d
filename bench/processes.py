"""The programs that are measured, each a process of its own on loopback."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

START = 15.0
"""Seconds within which a program has to listen."""

_NGINX = """
daemon off; master_process on; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log;
events {{ worker_connections 256; }}
http {{
  access_log off; sendfile on; tcp_nopush on;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  server {{
    listen 127.0.0.1:{port};
    {location}
  }}
}}
"""


def free_port() -> int:
    """A port on loopback that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def nginx(folder: Path, location: str) -> Generator[int]:
    """nginx with one location; gives its port."""
    folder.mkdir()
    port = free_port()
    config = folder / "nginx.conf"
    config.write_text(_NGINX.format(folder=folder, port=port, location=location))
    with _running(["nginx", "-c", str(config), "-e", str(folder / "error.log")], [port]):
        yield port


@contextmanager
def peili(*settings: str) -> Generator[tuple[int, int]]:
    """`peili serve` with these settings; gives the ports of its local and its peer door."""
    local, peer = free_port(), free_port()
    doors = [f"local.listen=127.0.0.1:{local}", f"peer.listen=127.0.0.1:{peer}", "log.level=error"]
    flags = [f"--set={setting}" for setting in (*doors, *settings)]
    command = [sys.executable, "-m", "peili.adapters.standalone", "serve", *flags]
    with _running(command, [local, peer]):
        yield local, peer


@contextmanager
def _running(command: Sequence[str], ports: Sequence[int]) -> Generator[None]:
    process = subprocess.Popen(command)
    try:
        for port in ports:
            _wait_for(port, process)
        yield
    finally:
        process.terminate()
        process.wait(timeout=START)


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START
    while process.poll() is None and time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.02)
        else:
            return
    raise RuntimeError(f"{process.args!r} does not listen on {port}")
