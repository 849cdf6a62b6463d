"""The entry point of the program `peili`. It imports the command only when SIGINT ends the process without a word."""

from __future__ import annotations

import signal
import sys


def main() -> int:
    """Run the command with the arguments of the process, and return the exit code."""
    is_usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # else the process was told to ignore it
    if is_usual:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # the imports take a while; Python would print where they were
    from peili.adapters.standalone import cli  # noqa: PLC0415 - as above

    if is_usual:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return cli.main(sys.argv[1:])
