"""What `peili plugins` and `peili version` print."""

from __future__ import annotations

import json
import platform
from importlib import metadata

from peili.mirror import RESOLVERS, ROUTERS, STORES, Plugins

_PACKAGES = ("grpcio", "httpx", "protobuf", "starlette", "uvicorn", "zeroconf")


def plugins(known: Plugins, *, as_json: bool) -> str:
    """Return the names of the plug-ins in each group, and the class behind each name."""
    groups = {group.removeprefix("peili."): known.names(group) for group in (STORES, ROUTERS, RESOLVERS)}
    if as_json:
        return json.dumps(groups)
    width = max(len(name) for names in groups.values() for name in names)
    lines: list[str] = []
    for group, names in groups.items():
        lines += [group, *(f"  {name:{width}}  {target}" for name, target in names.items())]
    return "\n".join(lines)


def versions(*, as_json: bool) -> str:
    """Return the versions of peili, of Python and of the libraries."""
    found = {"peili": version("peili"), "python": platform.python_version()}
    found |= {name: version(name) for name in _PACKAGES}
    return json.dumps(found) if as_json else "\n".join(f"{name} {number}" for name, number in found.items())


def version(package: str) -> str:
    """Return the installed version of `package`; ``unknown`` in a frozen app that does not include the metadata."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"
