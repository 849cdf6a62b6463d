"""`peili demo`: the main job on one machine, without root, told as it happens.

Three hosts with a mirror each on loopback, an image that only one of them has, and a client that is not ours. Nothing
in here is needed to embed peili; hosts.py shows how little it takes.
"""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from peili.adapters.demo.extra import require_oras
from peili.adapters.demo.story import Story
from peili.mirror import PeiliError

__all__ = ["run"]


def run(*, corrupt: bool) -> int:
    """Tell it; 0 where every digest was right, else 1. Raises PeiliError where the extra `demo` is not installed."""
    require_oras()
    with tempfile.TemporaryDirectory(prefix="peili-demo-") as directory:
        try:
            return 0 if asyncio.run(Story(Path(directory)).tell(corrupt=corrupt)) else 1
        except TimeoutError as error:
            raise PeiliError("the demo took too long") from error
