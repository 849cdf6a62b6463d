"""The command: which rows, how thoroughly, and where the results go. `python -m bench --help` says it all."""

from __future__ import annotations

import argparse
import json
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
from typing import NoReturn

from tests.lab.processes import CommandFailed

from bench import report, table
from bench.measure import Row
from bench.prepare import missing_for
from bench.rows import growth, memory, misses, pull, relay, requests, serve
from bench.setting import Setting

MEASURED: Mapping[str, Callable[[Setting], Iterator[Row]]] = {
    module.GROUP: module.rows for module in (serve, relay, requests, misses, pull, memory, growth)
}
"""What can be chosen, in the order of the table."""

RESULTS = Path(__file__).parent / "results"
FULL = RESULTS / "bench.json"
"""Where a full run of all rows is kept; it is committed. Anything less goes beside it and is not."""
PARTIAL = RESULTS / "partial.json"

_ROOM = 6 << 30
"""Bytes that the content of a full run may take."""
_FAILURES = (RuntimeError, CommandFailed, AssertionError, OSError, subprocess.SubprocessError)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 1 where a row that was asked for could not be measured; whether budgets are met does not count."""
    arguments = _parser().parse_args(argv)
    if arguments.show:
        return _show(arguments.show)
    chosen = [row for row in MEASURED if row in arguments.rows] or [*MEASURED]
    machine = report.machine()
    print(report.summary(machine), table.header(), sep="\n", flush=True)
    began = time.monotonic()
    rows, failed = _measure(chosen, arguments)
    document = report.document(rows, machine, quick=arguments.quick, seconds=time.monotonic() - began)
    thorough = not arguments.quick and not failed and chosen == [*MEASURED]
    _keep(rows, document, arguments.json or (FULL if thorough else PARTIAL))
    return 1 if failed else 0


def _show(file: Path) -> int:
    """The table of a run that was kept."""
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        rows = report.rows_of(document)
    except (OSError, ValueError) as error:
        print(f"bench: {file}: {error}", file=sys.stderr)
        return 1
    print(report.summary(document["machine"]), table.header(), *map(table.line, rows), "", sep="\n")
    print(table.verdict(rows))
    return 0


def _terminated(number: int, frame: FrameType | None) -> NoReturn:
    """Ends in an orderly way, so that whatever was started is ended, too."""
    sys.exit(128 + number)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Measures peili side by side with nginx and docker-registry; prints a table and writes JSON.",
    )
    names = ", ".join(MEASURED)
    parser.add_argument("rows", nargs="*", metavar="ROW", type=_row, help=f"{names}; by default all")
    parser.add_argument("--quick", action="store_true", help="small sizes, few rounds: shows that rows run, no more")
    parser.add_argument("--show", type=Path, metavar="FILE", help="measure nothing; the table of what is kept there")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write it; a plot of growth goes beside it")
    parser.add_argument(
        "--folder", type=Path, default=_folder(), help="where the content lives while it is served (%(default)s)"
    )
    return parser


def _row(name: str) -> str:
    if name not in MEASURED:
        raise argparse.ArgumentTypeError(f"there is no row {name!r}; there are: {', '.join(MEASURED)}")
    return name


def _folder() -> Path:
    """Memory, where there is enough of it, so that no disk is measured."""
    shared = Path("/dev/shm")
    available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if shared.is_dir() and min(shutil.disk_usage(shared).free, available) > 2 * _ROOM:
        return shared
    return Path(tempfile.gettempdir())


def _measure(chosen: Sequence[str], arguments: argparse.Namespace) -> tuple[list[Row], list[str]]:
    """The rows, each printed as soon as it is there; and the names of those that could not be measured."""
    rows: list[Row] = []
    failed: list[str] = []
    with tempfile.TemporaryDirectory(prefix="peili-bench-", dir=arguments.folder) as folder:
        Path(folder).chmod(0o755)  # nginx's workers are somebody else
        setting = Setting(Path(folder), quick=arguments.quick)
        for name in chosen:
            try:
                with closing(_rows(name, setting)) as found:
                    for row in found:
                        print(table.line(row), flush=True)
                        rows.append(row)
            except _FAILURES as error:
                print(f"bench: {name}: {error}", file=sys.stderr, flush=True)
                failed.append(name)
    return rows, failed


def _rows(name: str, setting: Setting) -> Generator[Row]:
    """The rows of one group. Raises RuntimeError where what it needs is not installed."""
    if missing := missing_for(name):
        raise RuntimeError(f"left out, it needs {' '.join(missing)}; as root on Debian `make bench` installs that")
    yield from MEASURED[name](setting)


def _keep(rows: Sequence[Row], document: dict[str, object], file: Path) -> None:
    report.write(file, document)
    print(f"\n{table.verdict(rows)}\nall samples: {file}")
    if any(row.place is not None for row in rows):
        _draw(rows, file.with_suffix(".svg"))


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
