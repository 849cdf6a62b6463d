"""A client that costs little: one connection, bytes counted and thrown away."""

from __future__ import annotations

import http.client
import time

_BUFFER = bytearray(1 << 20)


class Client:
    """A kept connection to a port on loopback."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

    def get(self, path: str, *, status: int, size: int | None = None) -> float:
        """Seconds from the request to the last byte. Raises RuntimeError for another answer than expected."""
        began = time.perf_counter()
        self._connection.request("GET", path)
        answer = self._connection.getresponse()
        received = 0
        while count := answer.readinto(_BUFFER):
            received += count
        took = time.perf_counter() - began
        if answer.status != status or (size is not None and received != size):
            raise RuntimeError(f"{path}: {answer.status} with {received} bytes instead of {status} with {size}")
        return took

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()
