"""The budget of each row: the goal that the project sets for it."""

from __future__ import annotations

from bench.measure import AtMost, AtMostMore, RatioOf

SERVE = RatioOf(0.9)
SERVE_TLS = RatioOf(0.55)
RELAY_VERIFIED = RatioOf(1.3)
RELAY_SPLICED = RatioOf(2)
RELAY_TLS = RatioOf(1)
MANIFEST_HEAD = RatioOf(3)
MISS = AtMost(10)
MISS_P99 = AtMost(30)
MISS_HALF_DEAD = AtMost(60)
IDLE_MEMORY = AtMost(64)
BUSY_MEMORY = AtMost(96)
START = AtMost(1)
COVERED_PULL = RatioOf(0.91)
"""It takes at most 1.1 times as long."""
PARALLEL = RatioOf(0.84)
"""A holder sends at most 1.2 times as many bytes as docker-registry."""
CONTAINERD = RatioOf(1)
FAULTY_HOLDERS = AtMostMore(2)
COLD_START_COPIES = AtMost(1.05)
COLD_START_LAST = AtMost(1.25)
COLD_START_SLOW_UPSTREAM = AtMost(1.15)
FLOOD_P99 = RatioOf(0.1)
FLOOD_LONGEST = AtMost(500)
MISS_OF_MANY = RatioOf(0.5)
"""A miss among 1,000 members takes at most twice as long as among 10."""
RELAY_OF_MANY = RatioOf(0.5)
MISS_HALF_SILENT = AtMost(1.1)
"""Once each silent member has failed, a miss takes at most this many times as long as without them."""
MISS_HALF_SILENT_P99 = AtMost(60)
