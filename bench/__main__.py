"""The command `python -m bench`: chooses the rows, measures them, and writes the results."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from tests.lab.processes import CommandFailed

from bench import fuzz, pages, report, table
from bench.measure import Row
from bench.prepare import missing_for
from bench.rows import (
    coldstart,
    containerd,
    faults,
    flood,
    growth,
    health,
    home,
    memory,
    misses,
    parallel,
    pull,
    relay,
    requests,
    serve,
)
from bench.setting import Setting

MEASURED: Mapping[str, Callable[[Setting], Iterator[Row]]] = {
    module.GROUP: module.rows
    for module in (
        serve,
        relay,
        requests,
        misses,
        health,
        flood,
        pull,
        parallel,
        coldstart,
        faults,
        memory,
        growth,
        home,
        containerd,
    )
}
"""The groups of rows, in the order of the table."""

LAST = report.RESULTS / "last.json"
"""The last run. It is not in git; `--publish` keeps what it measured."""

_ROOM = 6 << 30
"""Bytes for the content of a full run."""
_FAILURES = (RuntimeError, CommandFailed, AssertionError, OSError, subprocess.SubprocessError)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit code is 1 if a chosen row could not be measured. Missed budgets do not count."""
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["fuzz"]:
        return fuzz.main(argv[1:])
    arguments = _parser().parse_args(argv)
    chosen = [row for row in MEASURED if row in arguments.rows] or [*MEASURED]
    if arguments.show is not None:
        return _show(arguments.show, chosen)
    if arguments.publish:
        return _publish(arguments.json or LAST)
    machine = report.machine()
    print(report.summary(machine), table.header(), sep="\n", flush=True)
    started = time.monotonic()
    rows, failed, seconds_of = _measure(chosen, arguments)
    seconds = time.monotonic() - started
    is_whole = not arguments.quick and not arguments.only
    document = report.document(rows, machine, is_whole=is_whole, seconds=seconds, groups=seconds_of)
    _keep(rows, document, arguments.json or LAST)
    return 1 if failed else 0


def _terminated(number: int, frame: FrameType | None) -> NoReturn:
    """Exit with clean-up, so that every started process ends, too."""
    sys.exit(128 + number)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Measures peili in turns with nginx and docker-registry; prints a table and writes JSON.",
        epilog="`python -m bench fuzz` measures nothing: it tests the editors of configuration with random files.",
    )
    names = ", ".join(MEASURED)
    parser.add_argument("rows", nargs="*", metavar="ROW", type=_row, help=f"{names}; by default all")
    parser.add_argument("--quick", action="store_true", help="small sizes and few rounds: only shows that the rows run")
    parser.add_argument(
        "--only", default="", metavar="TEXT", help="only the scenes of coldstart, and faults, that have TEXT"
    )
    parser.add_argument("--show", type=Path, metavar="FILE", help="measure nothing: print the table of a JSON file")
    parser.add_argument(
        "--publish", action="store_true", help="measure nothing: put what the last run measured into docs/ and README"
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="the file of the run; a plot of growth goes next to it (last.json)"
    )
    parser.add_argument(
        "--folder", type=Path, default=_folder(), help="for the content while it is served (%(default)s)"
    )
    return parser


def _show(file: Path, chosen: Sequence[str]) -> int:
    """Print the table of an earlier run. The exit code is 2 if `file` is not the document of a run."""
    try:
        rows = [row for row in report.read(file)["rows"] if row["row"] in chosen]
    except (OSError, ValueError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    print(*table.compact(rows), "", *_below(rows), sep="\n")
    return 0


def _publish(file: Path) -> int:
    """Keep the groups of a run, and put them into the pages that show them. The exit code is 2 if that fails."""
    try:
        kept = report.keep(report.read(file), report.RESULTS)
        if growth.GROUP in kept and (plot := file.with_suffix(".png")).exists():
            shutil.copyfile(plot, report.RESULTS / "growth.png")
        print(*pages.publish(report.kept(MEASURED, report.RESULTS)), sep="\n")
    except (OSError, ValueError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    return 0


def _below(rows: Sequence[table.Object]) -> list[str]:
    """Return the lines below a table."""
    return [line for line in (table.verdict(rows), table.notes(rows)) if line]


def _row(name: str) -> str:
    if name not in MEASURED:
        raise argparse.ArgumentTypeError(f"there is no row {name!r}; there are: {', '.join(MEASURED)}")
    return name


def _folder() -> Path:
    """Return a folder in memory if there is enough of it, so that no disk is measured."""
    shared = Path("/dev/shm")
    available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if shared.is_dir() and min(shutil.disk_usage(shared).free, available) > 2 * _ROOM:
        return shared
    return Path(tempfile.gettempdir())


def _measure(chosen: Sequence[str], arguments: argparse.Namespace) -> tuple[list[Row], list[str], Mapping[str, float]]:
    """Measure, and print each row at once.

    Returns:
        The rows, the groups that could not be measured, and the seconds that each of the others took.
    """
    rows: list[Row] = []
    failed: list[str] = []
    seconds_of: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="peili-bench-", dir=arguments.folder) as folder:
        Path(folder).chmod(0o755)  # nginx's workers run as another user
        setting = Setting(Path(folder), quick=arguments.quick, only=arguments.only)
        for number, name in enumerate(chosen, 1):
            started = time.monotonic()
            if sys.stderr.isatty():
                print(f"measuring {name}, {number} of {len(chosen)} …", file=sys.stderr, flush=True)
            try:
                with closing(_rows(name, setting)) as found:
                    for row in found:
                        print(table.line(report.as_object(row)), flush=True)
                        rows.append(row)
            except _FAILURES as error:
                print(f"bench: {name}: {error}", file=sys.stderr, flush=True)
                failed.append(name)
            else:
                seconds_of[name] = time.monotonic() - started
    return rows, failed, seconds_of


def _rows(name: str, setting: Setting) -> Generator[Row]:
    """Yield the rows of one group. Raises RuntimeError if a program that it needs is not installed."""
    if missing := missing_for(name):
        raise RuntimeError(f"left out, it needs {' '.join(missing)}; as root on Debian `make bench` installs that")
    yield from MEASURED[name](setting)


def _keep(rows: Sequence[Row], document: Mapping[str, Any], file: Path) -> None:
    report.write(file, document)
    print("", *_below(document["rows"]), f"all samples: {file}", sep="\n")
    if any(row.place is not None for row in rows):
        _draw(rows, file.with_suffix(".png"))


def _draw(rows: Sequence[Row], file: Path) -> None:
    try:
        from bench import plots  # noqa: PLC0415 - only growth needs the extra `bench`
    except ImportError as error:
        print(f"bench: {error}", file=sys.stderr)
        return
    plots.draw(rows, file)
    print(f"growth: {file}")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _terminated)
    sys.exit(main())
