"""Tests the editors of hosts.toml, registries.yaml and Talos's documents, and the doors. Nothing is measured.

Each input is a file of tests/differential with some random changes. tests/differential/invariants.py checks the rules
of the editors. The printed seed creates the same inputs again. The doors are tested by door_fuzzer.py.
"""

from __future__ import annotations

import argparse
import importlib.util
import random
import re
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.differential.corpus import CORPUS
from tests.differential.invariants import VERSIONS, check_hosts_toml, check_registries_yaml, check_talos
from tests.differential.yaml_corpus import REGISTRIES, TALOS

_HOSTS = [
    content
    for case in CORPUS.values()
    for name, content in case.at(5050).tree.items()
    if isinstance(content, bytes) and name.endswith("hosts.toml")
]
_CHOICES = ((), (), ("r.example",), ("docker.io", "*"))
_DOORS = {
    "local": "local door",
    "peer": "peer door",
    "peer-tls": "peer door inside TLS",
    "peer-records": "peer door, records of TLS",
}
"""What door_fuzzer.py fuzzes, and its name for people."""
_SHOWN = 10
"""The most faults that are printed for each editor."""

_ANYWHERE = (
    *("\"'[]{}=,.:#\\|>&*!?%-~/@`\t\r\n\0\x85\u2028\ufeff\xfc"),
    *(
        "\r\n",
        "\n\n",
        "  ",
        "- ",
        ": ",
        '"""',
        "'''",
        "[[",
        "]]",
        "\\x41",
        "\\u0041",
        "true",
        "null",
        "yes",
        "1",
        "1.5",
    ),
    *("2024-01-01", "http://127.0.0.1:5050", "http://a.example", "https://", "/v2", ":5000", "[::1]", "docker.io", "x"),
)
_TOML = ("host", "server", "capabilities", "ca", "header", "[host]\n", "[host.'http://d.example']\n", "x = 1\n", "{}")
_TOML_TOO = ("# >>> peili hosts >>>\n", "# <<< peili hosts <<<\n", "host.'http://c.example'.skip_verify = true\n")
_YAML = ("mirrors", "endpoint", "  ", "---\n", "...\n", "&a ", "*a", "<<: ", "? ", "!!str ", "# added by peili", "'*'")
_MACHINE = ("endpoints:\n", "  - url: https://n\n", "name: z\n", "$patch: delete\n", "skipFallback: true\n")


@dataclass(frozen=True, slots=True)
class Editor:
    """An editor under test.

    Attributes:
        files: The files from which inputs are created.
        pieces: Bytes that are inserted into the files.
        faults: Edits an input, and yields a line for each broken rule.
    """

    files: Sequence[bytes]
    pieces: Sequence[bytes]
    faults: Callable[[bytes, Path, random.Random], Iterator[str]]


def _pieces(*texts: str) -> tuple[bytes, ...]:
    return (b"\xff", *(text.encode() for text in (*_ANYWHERE, *texts)))


EDITORS: Mapping[str, Editor] = {
    "hosts.toml": Editor(
        _HOSTS,
        _pieces(*_TOML, *_TOML_TOO),
        lambda data, folder, rng: check_hosts_toml(data, folder, rng.choice(VERSIONS), rng.choice(_CHOICES[:3])),
    ),
    "registries.yaml": Editor(
        [*REGISTRIES.values()],
        _pieces(*_YAML),
        lambda data, folder, rng: check_registries_yaml(data, folder, rng.choice(_CHOICES)),
    ),
    "Talos": Editor(
        [*TALOS.values()],
        _pieces(*_YAML, *_MACHINE),
        lambda data, folder, rng: check_talos(data, rng.choice(_CHOICES)),
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. The exit code is 1 if an editor has broken a rule."""
    arguments = _parser().parse_args(argv)
    rng = random.Random(arguments.seed)
    print(f"seed {arguments.seed}, {arguments.seconds:g} seconds for each editor and each door", flush=True)
    faults = 0
    for name, editor in EDITORS.items():
        with tempfile.TemporaryDirectory(prefix="peili-fuzz-", dir=arguments.folder) as folder:
            inputs, found = _test(editor, Path(folder), rng, arguments.seconds)
        print(f"{name}: {inputs:,} inputs, {len(found)} faults", flush=True)
        for data, what in sorted(found, key=lambda each: len(each[0]))[:_SHOWN]:
            print(f"  {data!r}\n    {what}", file=sys.stderr)
        faults += len(found)
    with tempfile.TemporaryDirectory(prefix="peili-fuzz-", dir=arguments.folder) as folder:
        faults += _fuzz_doors(Path(folder), arguments)
    return 1 if faults else 0


def has_atheris() -> bool:
    """Return whether atheris is installed. It has no wheels for some versions of Python."""
    return importlib.util.find_spec("atheris") is not None


def _fuzz_doors(folder: Path, arguments: argparse.Namespace) -> int:
    """Let atheris fuzz the doors, if it is installed. Return for how many of `_DOORS` it has found a fault."""
    if not has_atheris():
        for name in _DOORS.values():
            print(f"{name}: not tested, because atheris is not installed", flush=True)
        return 0
    bound = f"-max_total_time={arguments.seconds:.0f}" if arguments.seconds else "-runs=50"
    seed = f"-seed={arguments.seed % 2**31 or 1}"
    command = [sys.executable, "-m", "bench.door_fuzzer", ",".join(_DOORS), str(folder), bound, seed]
    done = subprocess.run(command, check=False, capture_output=True, text=True, errors="replace")
    right = {line.split()[0] for line in done.stdout.splitlines() if line.split()[1:] == ["0"]}
    logs = {door: folder / f"{door}.log" for door in _DOORS}
    return sum(not _show_door(_DOORS[door], log, done, ended_well=door in right) for door, log in logs.items())


def _show_door(name: str, file: Path, done: subprocess.CompletedProcess[str], *, ended_well: bool) -> bool:
    """Print what the fuzzer found at a door. Return whether it was no fault."""
    output = file.read_text(errors="replace") if file.exists() else done.stderr
    count = re.search(r"^Done (\d+) runs", output, re.MULTILINE)
    if ended_well and count is not None:
        print(f"{name}: {int(count[1]):,} inputs, 0 faults", flush=True)
        return True
    print(f"{name}: a fault", flush=True)
    print(output[-4000:], file=sys.stderr)
    return False


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench fuzz", description="Tests the editors with random files.")
    parser.add_argument("--seconds", type=float, default=60, help="for each editor and each door (%(default)g)")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32), help="by default a random one")
    shared = Path("/dev/shm")
    folder = shared if shared.is_dir() else Path(tempfile.gettempdir())
    parser.add_argument("--folder", type=Path, default=folder, help="where the files are (%(default)s)")
    return parser


def _test(editor: Editor, folder: Path, rng: random.Random, seconds: float) -> tuple[int, list[tuple[bytes, str]]]:
    """Return the number of inputs, and each fault with its input."""
    found: list[tuple[bytes, str]] = []
    inputs, end = 0, time.monotonic() + seconds
    while inputs == 0 or time.monotonic() < end:
        data = changed(rng.choice(editor.files), editor.pieces, editor.files, rng)
        inputs += 1
        try:
            found += [(data, what) for what in editor.faults(data, folder, rng)]
        except Exception:  # noqa: BLE001 - any error of the editor is a fault
            found.append((data, traceback.format_exc()))
    return inputs, found


def changed(data: bytes, pieces: Sequence[bytes], others: Sequence[bytes], rng: random.Random) -> bytes:
    """Return `data` with up to five random changes."""
    for _ in range(rng.choice((0, 1, 1, 1, 2, 2, 3, 5))):
        start = rng.randrange(len(data) + 1)
        end = min(len(data), start + rng.randrange(1, 12))
        what = rng.randrange(6)
        if what == 0:
            data = data[:start] + data[end:]
        elif what == 1:
            data = data[:start] + rng.choice(pieces) + data[end:]
        elif what == 2:
            lines, more = data.split(b"\n"), rng.choice(others).split(b"\n")
            first = rng.randrange(len(more))
            data = b"\n".join([*lines, *more[first : first + 3]])
        elif what == 3:
            lines = data.split(b"\n")
            rng.shuffle(lines)
            data = b"\n".join(lines)
        else:
            data = data[:start] + rng.choice(pieces) + data[start:]
    return data
