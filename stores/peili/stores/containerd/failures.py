"""Turns what goes wrong on the way to containerd into errors of peili's, with a line that tells what to look at."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from peili.mirror import NotFound, PeiliError, StoreUnavailable
from peili.stores.containerd._grpc import StatusCode, aio


@contextmanager
def translated(socket: Path) -> Generator[None, None, None]:
    """Around one call to the containerd behind `socket`. Raises NotFound and StoreUnavailable."""
    try:
        yield
    except aio.AioRpcError as error:
        raise _translate(error, socket) from error
    except aio.BaseError as error:  # the channel was closed before the call
        raise StoreUnavailable(f"the connection to {socket} is closed") from error
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        # Closing a channel cancels its calls; who waits for one was not cancelled.
        raise StoreUnavailable(f"the connection to {socket} was closed") from error


def _translate(error: aio.AioRpcError, socket: Path) -> PeiliError:
    match error.code():
        case StatusCode.NOT_FOUND:
            return NotFound(error.details() or "not found")
        case StatusCode.UNAVAILABLE:
            return StoreUnavailable(why_unreachable(socket))
        case StatusCode.DEADLINE_EXCEEDED:
            return StoreUnavailable(f"containerd on {socket} did not answer in time")
        case code:
            return StoreUnavailable(f"containerd on {socket} answered {code.name}: {error.details()}")


def why_unreachable(socket: Path) -> str:
    """Why nobody answers on `socket`, as far as its file tells."""
    try:
        mode = socket.stat().st_mode
    except PermissionError:
        return f"no permission to reach {socket}; run as root, or give this user access to its directory"
    except OSError:
        return f"there is no socket {socket}; is containerd running, and is that its address?"
    if not stat.S_ISSOCK(mode):
        return f"{socket} is not a socket; right is the one that containerd listens on"
    if not os.access(socket, os.R_OK | os.W_OK):
        return f"no permission on {socket}; run as root, or give this user access to it"
    return f"containerd does not answer on {socket}"
