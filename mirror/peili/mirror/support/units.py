"""Numbers for people: bytes, durations and shares as short text."""

from __future__ import annotations

_UNITS = ("KiB", "MiB", "GiB", "TiB", "PiB")


def bytes_text(count: float) -> str:
    """Return a number of bytes with a unit, such as ``45.1 MiB``."""
    if count < 1024:
        return f"{count:.0f} B"
    power = min(len(_UNITS), (int(count).bit_length() - 1) // 10)
    return f"{count / 1024**power:.1f} {_UNITS[power - 1]}"


def seconds_text(seconds: float) -> str:
    """Return a duration, such as ``0.4 ms``, ``3.2 s``, ``5 min`` or ``2.5 h``."""
    if seconds < 1:
        return f"{seconds * 1000:.1f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def share_text(share: float | None) -> str:
    """Return a share between 0 and 1 in percent; ``-`` for None. It is rounded down, so that 100 % means all."""
    return "-" if share is None else f"{int(share * 100)} %"
