"""The addresses at which doors listen: how they are written and reached, and that no two doors have the same one."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from ipaddress import IPv6Address
from itertools import combinations, product
from typing import cast

from peili.mirror import ConfigError, Options

_PORTS = {"local": 5050, "peer": 5051, "ops": 5052}
"""The usual port of each door."""
_DOOR_NAMES = {"local": "the local door", "peer": "the peer door", "ops": "[ops]"}
_LOOPBACK = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "[::]": "[::1]"}  # noqa: S104 - compared, not listened on
"""Where a client on this host reaches a door that listens on every address."""
_ADDRESS = re.compile(
    r"(?:\[(?P<ipv6>[0-9a-fA-F:.]+)(?:%[\w.-]+)?\]|(?P<name>[A-Za-z0-9_.-]*)):(?P<port>[0-9]{1,5})", re.ASCII
)


def read_addresses(section: Options, key: str, default: str | list[str], *, empty: bool = False) -> tuple[str, ...]:
    """Return one address or a list of addresses as a tuple.

    Args:
        section: The section of the configuration.
        key: The key.
        default: The value of a key that is missing.
        empty: Whether the list may be empty.

    Raises:
        ConfigError: The value is something else.
    """
    expected = "HOST:PORT, [IPv6]:PORT, or a list of them"
    value = section.value(key, (str, list), expected, default)
    values = cast("list[object]", [value] if isinstance(value, str) else value)
    addresses = tuple(each for each in values if isinstance(each, str) and _is_address(each))
    if len(addresses) < len(values) or not (addresses or empty):
        raise section.wrong(key, expected)
    return addresses


def _is_address(text: str) -> bool:
    match = _ADDRESS.fullmatch(text)
    if match is None or int(match["port"]) > 65535:
        return False
    try:
        if match["ipv6"] is not None:
            IPv6Address(match["ipv6"])
        else:
            match["name"].encode("idna")  # UnicodeError: a part between dots is empty or too long
    except ValueError:
        return False
    return True


def url_on_this_host(address: str, *, has_tls: bool) -> str:
    """Return the URL at which a client on this host reaches a door that listens at `address`."""
    host, _, port = address.rpartition(":")
    return f"{'https' if has_tls else 'http'}://{_LOOPBACK.get(host, host)}:{port}"


def check_ports(doors: Mapping[str, Sequence[str]], sources: Mapping[str, str]) -> None:
    """Check that no two doors listen on the same port of the same address.

    Args:
        doors: The addresses of each door. The doors are ``local``, ``peer`` and ``ops``.
        sources: Where the addresses of a door were set; without the doors that have their default.

    Raises:
        ConfigError: Two doors do.
    """
    ports = {address.rpartition(":")[2] for addresses in doors.values() for address in addresses}
    for (one, addresses), (other, others) in combinations(doors.items(), 2):
        for address, another in product(addresses, others):
            (host, _, port), (other_host, _, other_port) = address.rpartition(":"), another.rpartition(":")
            is_same_host = host == other_host or not {host, other_host}.isdisjoint(_LOOPBACK)
            if int(port) == int(other_port) != 0 and is_same_host:
                section = other if other in sources else one
                names = f"{address} of {_DOOR_NAMES[one]} and {another} of {_DOOR_NAMES[other]}"
                free = next(each for each in (_PORTS[section], *range(int(port) + 1, 2**16)) if str(each) not in ports)
                own = f"{(other_host if section == other else host)}:{free}"
                expected = f"a port of its own; {names} are the same; did you mean {own}?"
                raise ConfigError(f"{section}.listen", expected, source=sources.get(section))
