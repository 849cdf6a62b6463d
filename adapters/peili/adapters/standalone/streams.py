"""The standard streams of the command: every text can be written to them, and what is wrong with them is one line."""

from __future__ import annotations

import errno
import io
import os
import sys
from contextlib import suppress
from pathlib import Path

from peili.mirror.support.log_lines import one_line

_WRITE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)
"""With these, writing to a stream fails. Other errors of files name the file."""


def prepare_streams() -> None:
    """Make the standard streams usable, with whatever the process was started.

    A stream that is closed, as after ``>&-``, leads to ``/dev/null``. Otherwise the next file or socket would get its
    number, and everything that is printed would end up there. A character that the encoding of a stream lacks is
    written as an escape.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            with suppress(OSError):
                os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # it gets the lowest number, which is free
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        stream = getattr(sys, name)
        if stream is None:
            with suppress(OSError):
                setattr(sys, name, os.fdopen(number, "w" if number else "r", closefd=False))
        elif number and isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


def printable(text: str) -> str:
    """Return `text` as one line without characters that control a terminal."""
    return one_line(text)


def complain(message: object) -> None:
    """Write one line on stderr: ``peili:`` and the message. Never raises."""
    with suppress(OSError):
        sys.stderr.write(f"peili: {printable(str(message))}\n")
        sys.stderr.flush()


def exit_code(error: OSError) -> int:
    """Say in one line what is wrong, and return the exit code. Raises `error` if it is about something else.

    What the process was started with may be wrong: its output, its limits, or its current directory.
    """
    if isinstance(error, BrokenPipeError):  # `peili … | head`: nobody reads the rest
        _discard_output()
        return 141  # what shells report: 128 + SIGPIPE
    if error.filename is not None:
        raise error
    if error.errno in _WRITE_ERRORS:
        _discard_output()
        complain(f"the output can't be written: {os.strerror(error.errno).lower()}")
    elif error.errno in {errno.EMFILE, errno.ENFILE}:
        complain("too few files may be open; raise the limit (ulimit -n, or LimitNOFILE= of the service)")
    elif not _has_directory():
        complain("the current directory does not exist any more; change to another one")
    else:
        raise error
    return 1


def _discard_output() -> None:
    """Let what is still to be written to stdout go nowhere, so that Python does not fail to write it at the exit."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _has_directory() -> bool:
    try:
        Path.cwd()
    except OSError:
        return False
    return True
