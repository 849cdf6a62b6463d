"""How a chain forms whose hosts ask at the same moment: in the same order for all layers of an image.

Layers that arrive at the same time share links. If their chains have different orders, each host reads from as many
others as there are layers, and an uplink is idle now and then while those that it feeds are busy with other layers. If
the order is the same, each host reads all layers from one host. Homes do not know each other's chains, so the order
depends on ids only. docs/cold-start.md has the figures.
"""

from __future__ import annotations

from collections.abc import Sequence

from peili.mirror.limits import MIB
from peili.mirror.membership.directory.feeders import Need
from peili.mirror.membership.directory.fetcher import Fetcher
from peili.mirror.membership.directory.fetches import Fetch

_FORMING_TIME = 1.0
"""Seconds after the first root was sent upstream for which the others wait for each other."""
_FORMING_SIZE = 4 * MIB
"""The smallest content for which they do. Its root has no byte yet, as a rule: runtimes write their files in steps."""
FORMING_WAIT = 0.1
"""Seconds until a host that waits asks again. It may be earlier that the root has a byte."""


def is_forming(fetch: Fetch, need: Need) -> bool:
    """Return whether the needy host waits for others, because nobody could read a byte yet, and a chain is good."""
    if need.failed or need.shape.children > 1 or need.shape.branches_late or (fetch.size or 0) < _FORMING_SIZE:
        return False
    is_new = fetch.begun_at is not None and need.now < fetch.begun_at + _FORMING_TIME
    has_one = len(fetch.live_roots(need.now)) == 1
    return is_new and has_one and not any(each.offset or each.is_whole for each in fetch.hosts.values())


def take_waiting(fetch: Fetch) -> Sequence[Fetcher]:
    """Return the hosts that wait, in the order of their chain. They do not wait any more.

    Hosts of a zone are neighbours. The first ones are those of the root's zone with an id after the root's.
    """
    waiting = [each for each in fetch.hosts.values() if each.is_forming]
    for each in waiting:
        each.is_forming = False
    root = next((fetch.hosts[each] for each in fetch.roots), None)
    zone, start = ("", "") if root is None else (root.zone, root.host)
    return sorted(waiting, key=lambda each: (each.zone != zone, each.zone, each.host < start, each.host))
