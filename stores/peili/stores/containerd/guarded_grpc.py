"""The only module of peili that imports gRPC, so that gRPC is always imported with its fork support off.

If the fork support is on, a child that is forked while a stream is open crashes or hangs in gRPC's fork handlers (grpc
issue 43055), even if the host agent forks it for another purpose. If it is off, gRPC does nothing in the child, and the
child must not use gRPC. gRPC reads the variable once, at its first use. A host agent that imports gRPC earlier decides
itself.
"""

from __future__ import annotations

import os

_VARIABLE = "GRPC_ENABLE_FORK_SUPPORT"
_original = os.environ.get(_VARIABLE)
os.environ[_VARIABLE] = "0"
try:
    import grpc
    from grpc import aio
finally:
    if _original is None:
        del os.environ[_VARIABLE]
    else:
        os.environ[_VARIABLE] = _original

StatusCode = grpc.StatusCode

__all__ = ["StatusCode", "aio"]
