"""Clusters of measured hosts and of empty mirrors, and when they know each other, so that they can be measured."""

from __future__ import annotations

import http.client
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from itertools import count, islice
from urllib.parse import urlsplit

from tests.lab.processes import wait_for
from tests.support.ports import free_ports

from bench.embedded import peer_id
from bench.mirrors import QUIET, Peili, cluster, peili, static_router
from bench.setting import Setting
from peili.mirror.membership.directory.homes import HomeSet, choose_homes, slot_of
from peili.mirror.peer_api.directory import HOLDERS_PATH, MAX_HOMES, HoldersAnswer, HoldersQuery
from peili.mirror.peer_api.messages import JSON_HEADERS

_SETTLED = 600.0
"""Seconds in which the members get to know each other, on a machine that is very busy with other work."""


@dataclass(frozen=True, slots=True)
class Own:
    """A measured host, as a process of its own.

    Attributes:
        settings: The settings of its store, and others.
        dead: Further members that only this host knows, for `static_router`.
    """

    settings: Sequence[str]
    dead: Sequence[Mapping[str, str]] = ()


@dataclass(frozen=True, slots=True)
class Members:
    """The members of a cluster.

    Attributes:
        hosts: The measured hosts, in the order in which they were given.
        urls: The URLs of the peer doors of all members, by id.
    """

    hosts: Sequence[Peili]
    urls: Mapping[str, str]

    def wait_until_settled(self) -> None:
        """Wait until every home knows what every member has, and all members have the same homes.

        A host that does not get so far finds content by asking all members. Then that is what would be measured.
        """
        unsettled = set(choose_homes(self.urls))
        keys = _keys(unsettled)

        def are_settled() -> bool:
            for home in [*unsettled]:
                if self.urls.keys() <= _known_hosts(self.urls[home], keys[home]):
                    unsettled.discard(home)
            return not unsettled

        wait_for(are_settled, f"the homes know all of {len(self.urls):,} members", timeout=_SETTLED, pause=0.5)


@contextmanager
def members(setting: Setting, hosts: Sequence[Own], empty: int) -> Generator[Members]:
    """Run a cluster of `hosts` and of `empty` mirrors without content, which are in one process."""
    ports = free_ports(len(hosts))
    own = [
        {"id": identity, "url": f"http://127.0.0.1:{port}"}
        for identity, port in zip(_ids(len(hosts), empty), ports, strict=True)
    ]
    with ExitStack() as stack:
        everybody = [*own, *stack.enter_context(cluster(setting.new("log"), empty, own))]
        started = [
            stack.enter_context(
                peili(
                    setting.new("log"),
                    *host.settings,
                    *static_router([*everybody, *host.dead]),
                    f"mirror.identity={this['id']}",
                    *QUIET,
                    peer=port,
                )
            )
            for host, this, port in zip(hosts, own, ports, strict=True)
        ]
        yield Members(started, {each["id"]: each["url"] for each in everybody})


def _ids(number: int, empty: int) -> list[str]:
    """Return ids for hosts that are no homes, unless the cluster is so small that all its members are homes.

    In larger ones, the empty mirrors report what they have only to those of themselves that are homes.
    """
    peers = [*map(peer_id, range(empty))]
    names = (f"host-{each}" for each in count())
    if empty < MAX_HOMES:
        return [*islice(names, number)]
    return [*islice((each for each in names if each not in choose_homes([*peers, each])), number)]


def _keys(homes: set[str]) -> dict[str, str]:
    """Return a key for each home that it is the first home of."""
    chosen, keys = HomeSet(frozenset(homes)), dict[str, str]()
    for number in count():
        key = f"sha256:{number:064x}"
        keys.setdefault(chosen.homes_of(slot_of(key))[0], key)
        if len(keys) == len(homes):
            return keys
    raise AssertionError("numbers have no end")


def _known_hosts(url: str, key: str) -> frozenset[str]:
    """Return the hosts of which a home knows whether they have the key: none if it does not answer."""
    address = urlsplit(url)
    with closing(http.client.HTTPConnection(address.hostname or "", address.port, timeout=10)) as connection:
        try:
            connection.request("POST", HOLDERS_PATH, HoldersQuery(key).encode(), {**JSON_HEADERS})
            response = connection.getresponse()
            answer = response.read()
        except (OSError, http.client.HTTPException):
            return frozenset()
    return frozenset() if response.status != 200 else HoldersAnswer.parse(answer).hosts or frozenset()
