"""Loads the records of one home, and says what that costs. The row `home` runs this in a process of its own.

    python -m bench.home '{"members": 1000, "keys": 5000, "same": true}'

All messages are encoded and parsed as they are on the wire. The HTTP requests that carry them are left out.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256

from bench.usage import memory
from peili.mirror import Limits
from peili.mirror.membership.directory.directory import message_interval
from peili.mirror.membership.directory.homes import HomeSet, choose_homes, slot_of
from peili.mirror.membership.directory.records import Records
from peili.mirror.peer_api.directory import MAX_BATCH, Holding, Holdings

_SIZE = 3_000_000
"""The stated size of each blob."""
_ROUNDS = 5
"""How many times each member sends a heartbeat."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What one home costs.

    Attributes:
        memory: The MiB that the records take.
        records: How many records there are. A key counts once for each holder that is kept.
        messages: How many messages it gets until it knows all keys.
        bytes: How many MB these have.
        seconds: The CPU seconds that these take.
        per_second: How many messages it gets per second afterwards.
        heartbeat: The CPU milliseconds that one of those takes.
    """

    memory: float
    records: int
    messages: int
    bytes: float
    seconds: float
    per_second: float
    heartbeat: float


def main() -> None:
    """Print the cost as JSON."""
    job = json.loads(sys.argv[1])
    print(json.dumps(asdict(cost(job["members"], job["keys"], same=job["same"]))))


def cost(members: int, keys: int, *, same: bool) -> Cost:
    """Load a home.

    Args:
        members: The number of members.
        keys: How many keys each of them has.
        same: Whether all have the same keys. If not, no two members have a key in common.
    """
    names = [f"member-{number}" for number in range(members)]
    homes = HomeSet(choose_homes(names))
    home = min(homes.ids)
    limits = Limits()
    records = Records(home, limits, lambda _: None)
    interval = message_interval(members, limits)
    before, seconds, size = memory(os.getpid()).resident, 0.0, 0
    shared = _keys_of(homes, home, "all", keys)
    sent = dict.fromkeys(names, 0)
    for name in names:
        of_home = shared if same else _keys_of(homes, home, name, keys)
        for data in _messages(of_home, tuple(homes.ids), interval):
            seconds += _take(records, name, data)
            sent[name], size = sent[name] + 1, size + len(data)
    taken, messages = memory(os.getpid()).resident - before, sum(sent.values())
    beats = [_take(records, name, _heartbeat(interval, sent[name] + n)) for n in range(_ROUNDS) for name in names]
    return Cost(
        memory=taken,
        records=len(records),
        messages=messages,
        bytes=size / 1e6,
        seconds=seconds,
        per_second=members / interval,
        heartbeat=1e3 * sum(beats) / len(beats),
    )


def _keys_of(homes: HomeSet, home: str, owner: str, keys: int) -> Sequence[str]:
    """Return those of the keys of `owner` for which `home` is one of the homes."""
    texts = (f"sha256:{sha256(f'{owner} {number}'.encode()).hexdigest()}" for number in range(keys))
    return [text for text in texts if home in homes.homes_of(slot_of(text))]


def _messages(keys: Sequence[str], homes: tuple[str, ...], interval: float) -> Iterator[bytes]:
    """Yield the first messages of a session."""
    parts = [keys[start : start + MAX_BATCH] for start in range(0, len(keys), MAX_BATCH)] or [()]
    for sequence, part in enumerate(parts):
        yield Holdings(
            session="first",
            sequence=sequence,
            interval=interval,
            homes=None if sequence else homes,
            is_synced=sequence == len(parts) - 1,
            have=tuple(Holding(key, _SIZE) for key in part),
        ).encode()


def _heartbeat(interval: float, sequence: int) -> bytes:
    """Return a message without news."""
    return Holdings("first", sequence, interval, None, is_synced=True).encode()


def _take(records: Records, name: str, data: bytes) -> float:
    """Let a home take a message. Return the CPU seconds that this took."""
    started = time.process_time()
    if not records.apply(name, Holdings.parse(data)):
        raise RuntimeError("a message was not accepted")
    return time.process_time() - started


if __name__ == "__main__":
    main()
