"""The command: which rows, how thoroughly, and where the results go. `python -m bench --help` says it all."""

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

from bench import fuzz, report, table
from bench.measure import Row
from bench.prepare import missing_for
from bench.rows import containerd, flood, growth, health, memory, misses, parallel, pull, relay, requests, serve
from bench.setting import Setting

MEASURED: Mapping[str, Callable[[Setting], Iterator[Row]]] = {
    module.GROUP: module.rows
    for module in (serve, relay, requests, misses, health, flood, pull, parallel, memory, growth, containerd)
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
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["fuzz"]:
        return fuzz.main(argv[1:])
    arguments = _parser().parse_args(argv)
    chosen = [row for row in MEASURED if row in arguments.rows] or [*MEASURED]
    if arguments.show is not None:
        return _show(arguments.show, chosen)
    machine = report.machine()
    print(report.summary(machine), table.header(), sep="\n", flush=True)
    began = time.monotonic()
    rows, failed, took = _measure(chosen, arguments)
    document = report.document(rows, machine, quick=arguments.quick, seconds=time.monotonic() - began, groups=took)
    thorough = not arguments.quick and not failed and chosen == [*MEASURED]
    _keep(rows, document, arguments.json or (FULL if thorough else PARTIAL))
    return 1 if failed else 0


def _terminated(number: int, frame: FrameType | None) -> NoReturn:
    """Ends in an orderly way, so that whatever was started is ended, too."""
    sys.exit(128 + number)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Measures peili side by side with nginx and docker-registry; prints a table and writes JSON.",
        epilog="`python -m bench fuzz` measures nothing: it tries the editors of configuration with random files.",
    )
    names = ", ".join(MEASURED)
    parser.add_argument("rows", nargs="*", metavar="ROW", type=_row, help=f"{names}; by default all")
    parser.add_argument("--quick", action="store_true", help="small sizes, few rounds: shows that rows run, no more")
    parser.add_argument("--show", type=Path, metavar="FILE", help="measure nothing: print such a JSON file's table")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write it; a plot of growth goes beside it")
    parser.add_argument(
        "--folder", type=Path, default=_folder(), help="where the content lives while it is served (%(default)s)"
    )
    return parser


def _show(file: Path, chosen: Sequence[str]) -> int:
    """The table of a run that has been: what README shows. Exit code 2 where `file` is no document of a run."""
    try:
        rows = [row for row in report.read(file)["rows"] if row["row"] in chosen]
    except (OSError, ValueError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    print(*table.compact(rows), "", *_below(rows), sep="\n")
    return 0


def _below(rows: Sequence[table.Object]) -> list[str]:
    """The lines under a table."""
    return [told for told in (table.verdict(rows), table.notes(rows)) if told]


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


def _measure(chosen: Sequence[str], arguments: argparse.Namespace) -> tuple[list[Row], list[str], Mapping[str, float]]:
    """The rows, each printed as soon as it is there; the names of those that could not be measured; and the seconds
    that each name took.
    """
    rows: list[Row] = []
    failed: list[str] = []
    took: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="peili-bench-", dir=arguments.folder) as folder:
        Path(folder).chmod(0o755)  # nginx's workers are somebody else
        setting = Setting(Path(folder), quick=arguments.quick)
        for name in chosen:
            began = time.monotonic()
            try:
                with closing(_rows(name, setting)) as found:
                    for row in found:
                        print(table.line(report.as_object(row)), flush=True)
                        rows.append(row)
            except _FAILURES as error:
                print(f"bench: {name}: {error}", file=sys.stderr, flush=True)
                failed.append(name)
            took[name] = time.monotonic() - began
    return rows, failed, took


def _rows(name: str, setting: Setting) -> Generator[Row]:
    """The rows of one group. Raises RuntimeError where what it needs is not installed."""
    if missing := missing_for(name):
        raise RuntimeError(f"left out, it needs {' '.join(missing)}; as root on Debian `make bench` installs that")
    yield from MEASURED[name](setting)


def _keep(rows: Sequence[Row], document: Mapping[str, Any], file: Path) -> None:
    report.write(file, document)
    print("", *_below(document["rows"]), f"all samples: {file}", sep="\n")
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
