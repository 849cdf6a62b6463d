"""The id of this host, if the configuration names none: the host's name and a part that tells hosts of one name apart.

It is the same after each restart, because it is made from the machine's id and from what tells several peilis of one
machine apart. Nothing is stored. Other hosts can't compute the machine's id from it.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import socket
import uuid
from pathlib import Path

from peili.adapters.standalone.config import Config

_MACHINE_ID = Path("/etc/machine-id")
_UNUSUAL = re.compile(r"[^A-Za-z0-9._-]+")
_LONGEST_NAME = 64


def default_identity(config: Config, *, machine_id: Path = _MACHINE_ID) -> str:
    """Return the id of the host that `config` describes, such as ``node-7-3f9a0c1d``.

    Args:
        config: The configuration. The addresses and the store of another peili on this machine differ.
        machine_id: The file with the machine's id. Without one, as in most containers, or if a port is chosen by the
            system, the last part is random.
    """
    name = _UNUSUAL.sub("-", socket.gethostname())[:_LONGEST_NAME] or "host"
    try:
        key = machine_id.read_bytes().strip()
    except OSError:
        key = b""
    if not key or any(address.endswith(":0") for address in (*config.local.listen, *config.peer.listen)):
        return f"{name}-{uuid.uuid4().hex[:8]}"
    instance = [
        config.file,
        config.local,
        config.peer.listen,
        config.peer.advertise,
        config.store.kind,
        config.store.options,
    ]
    text = json.dumps(["peili", name, *instance], default=str, sort_keys=True)
    return f"{name}-{hmac.new(key, text.encode(), hashlib.sha256).hexdigest()[:8]}"
