"""The kinds of addresses, and which of them may be dialled."""

from __future__ import annotations

import pytest

from peili.mirror import AddressKinds


@pytest.mark.parametrize(
    ("address", "kind"),
    [
        ("10.0.0.1", AddressKinds.ROUTED),
        ("192.168.0.1", AddressKinds.ROUTED),
        ("100.64.0.1", AddressKinds.ROUTED),
        ("8.8.8.8", AddressKinds.ROUTED),
        ("fd00::1", AddressKinds.ROUTED),
        ("2001:4860::1", AddressKinds.ROUTED),
        ("::ffff:10.0.0.1", AddressKinds.ROUTED),
        ("127.0.0.1", AddressKinds.LOOPBACK),
        ("127.255.0.9", AddressKinds.LOOPBACK),
        ("::1", AddressKinds.LOOPBACK),
        ("::ffff:127.0.0.1", AddressKinds.LOOPBACK),
        ("64:ff9b::7f00:1", AddressKinds.LOOPBACK),
        ("2002:7f00:1::", AddressKinds.LOOPBACK),
        ("169.254.7.7", AddressKinds.LINK_LOCAL),
        ("fe80::1", AddressKinds.LINK_LOCAL),
        ("fe80::1%eth0", AddressKinds.LINK_LOCAL),
        ("169.254.169.254", AddressKinds.OTHER),
        ("::ffff:169.254.169.254", AddressKinds.OTHER),
        ("64:ff9b::a9fe:a9fe", AddressKinds.OTHER),
        ("fd00:ec2::254", AddressKinds.OTHER),
        ("100.100.100.200", AddressKinds.OTHER),
        ("168.63.129.16", AddressKinds.OTHER),
        ("0.0.0.0", AddressKinds.OTHER),
        ("0.1.2.3", AddressKinds.OTHER),
        ("::", AddressKinds.OTHER),
        ("224.0.0.251", AddressKinds.OTHER),
        ("ff02::fb", AddressKinds.OTHER),
        ("255.255.255.255", AddressKinds.OTHER),
    ],
)
def test_an_address_is_of_one_kind(address: str, kind: AddressKinds) -> None:
    assert AddressKinds.of(address) is kind
    assert kind in AddressKinds.ANY


def test_a_name_is_of_no_kind() -> None:
    with pytest.raises(ValueError, match="localhost"):
        AddressKinds.of("localhost")
