"""Runs authority.py in a child process, because cryptography would keep 13 MiB of memory for a second of work a day."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

_PROGRAM = Path(__file__).with_name("authority.py")
_TIMEOUT = 30.0
"""Seconds after which the child process is given up. It takes about 0.2."""


class IssuedCertificate(NamedTuple):
    """The same as `HostCertificate`."""

    chain: str
    key: str
    trusted: str


def issue_certificate(keys: Sequence[bytes], uri: str, dns_name: str, begin: float, end: float) -> IssuedCertificate:
    """Issue the certificate of a host. Takes about 0.2 s. See `issue_for_host` in authority.py.

    Raises:
        ImportError: `cryptography` is not installed.
    """
    if find_spec("cryptography") is None:
        raise ImportError("shared keys need cryptography: pip install 'peili[keys]'")
    arguments = ([key.hex() for key in keys], uri, dns_name, begin, end)
    try:
        return _issue_in_child(json.dumps(arguments))
    except (OSError, subprocess.SubprocessError, ValueError, TypeError):
        from peili.mirror.tls import authority  # noqa: PLC0415 - see above

        issued = authority.issue_for_host(keys, uri, dns_name, begin, end)
        return IssuedCertificate(issued.chain, issued.key, issued.trusted)


def _issue_in_child(arguments: str) -> IssuedCertificate:
    """Issue a certificate in a child process. Any error means that this does not work here."""
    if not Path(sys.executable).name.startswith("python"):
        raise OSError("another program embeds Python, or this is a frozen app")
    # The same modules as here; -P: without the folder of the program.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(  # noqa: S603 - our own program, by the Python that runs
        [sys.executable, "-P", str(_PROGRAM)],
        input=arguments,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        timeout=_TIMEOUT,
        text=True,
        check=True,
        env=environment,
    )
    return IssuedCertificate(**json.loads(done.stdout))
