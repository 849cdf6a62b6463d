"""The faults that an honest holder can have: it claims to have the content, and then behaves like this."""

from __future__ import annotations

from collections.abc import Mapping

from tests.mirror.relay.peers import (
    Script,
    answers,
    breaks_connections,
    drips_after,
    resets_after,
    short_after,
    silent,
    silent_after,
    silent_after_head,
)

KIB = 1024

FAULTS: Mapping[str, Script] = {
    "never answers": silent,
    "hangs after the head": silent_after_head,
    "hangs after its first byte": silent_after(1),
    "hangs after 96 KiB": silent_after(96 * KIB),
    "hangs in the middle": silent_after(300 * KIB),
    "1 B/s": drips_after(0, piece=1, pause=1),
    "90 kB/s": drips_after(0, piece=9000, pause=0.1),
    "90 kB/s after 96 KiB": drips_after(96 * KIB, piece=9000, pause=0.1),
    "resets": breaks_connections,
    "resets in the middle": resets_after(300 * KIB),
    "ends in the middle": short_after(300 * KIB),
    "404": answers(404),
    "503": answers(503),
}
