"""The URLs of mirrors of which it is certain whom a runtime asks, however it reads URLs."""

from __future__ import annotations

import re
from ipaddress import IPv6Address

_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?"
_URL = re.compile(
    rf"(?P<scheme>https?://)?(?P<host>{_NAME}|\[(?P<ipv6>[0-9A-Fa-f:.]+)\])(?::(?P<port>[0-9]{{1,5}}))?"
    r"(?P<path>(?:/+[A-Za-z0-9._~-]+)*)/*"
)


def is_plain(url: str) -> bool:
    """Whether `url` is a scheme, which may be missing, a host, a port and a path without anything unusual."""
    match = _URL.fullmatch(url)
    if match is None or not 0 < int(match["port"] or 1) < 65536:
        return False
    if not match["scheme"] and url.startswith("http"):  # which containerd would take for a scheme
        return False
    return not {".", ".."} & {*match["path"].split("/")} and (match["ipv6"] is None or _is_ipv6(match["ipv6"]))


def _is_ipv6(text: str) -> bool:
    try:
        IPv6Address(text)
    except ValueError:
        return False
    return True
