"""The one place that imports gRPC. Nothing else of peili may, so that it is always imported like this.

With its fork support on, a child that is forked under an open stream crashes or hangs in gRPC's fork handlers (grpc
issue 43055), also in code of the host's that has nothing to do with peili. Off, a child is left alone; it must not
use gRPC itself. gRPC reads the switch once, when it is first used: a host that imports it earlier chooses itself.
"""

from __future__ import annotations

import os

_SWITCH = "GRPC_ENABLE_FORK_SUPPORT"
_before = os.environ.get(_SWITCH)
os.environ[_SWITCH] = "0"
try:
    import grpc
    from grpc import aio
finally:
    if _before is None:
        del os.environ[_SWITCH]
    else:
        os.environ[_SWITCH] = _before

StatusCode = grpc.StatusCode

__all__ = ["StatusCode", "aio"]
