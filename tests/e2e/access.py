"""Starts peili in the laboratory with peer doors that are open, or closed by a key or by certificates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from tests.lab.lab import Lab, RouterKind
from tests.support.certificates import Authority

from peili.mirror.tls.key_file import create_key_file

Access = Literal["open", "shared key", "certificates"]


def start_peili(
    lab: Lab, access: Access, *, router: RouterKind = "static", limits: Mapping[str, Any] | None = None
) -> None:
    """Start peili on all hosts of `lab`, with the section `limits` of the configuration."""
    sections: Any = {} if limits is None else {"limits": limits}
    if access == "open":
        lab.start_peili(router=router, **sections)
    elif access == "shared key":
        key = lab.directory / "key"
        create_key_file(key)
        lab.start_peili(router=router, peer={"shared_key_file": str(key)}, **sections)
    else:
        authority = Authority(lab.directory / "authority")
        for name, host in lab.hosts.items():
            issued = authority.issue(lab.directory / "certificates" / name, host.node.address)
            lab.start_peili(name, router=router, peer={"tls": issued.files()}, **sections)
