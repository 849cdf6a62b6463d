"""Random files for the three editors: hosts.toml, registries.yaml, Talos's documents. Nothing is measured.

Each input is a file of tests/judge with some random changes; what has to hold for it is in tests/judge/editing.py. The
seed that is printed makes the same inputs again.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.judge.corpus import CORPUS
from tests.judge.editing import VERSIONS, faults_of_hosts, faults_of_registries, faults_of_talos
from tests.judge.odd_yaml import REGISTRIES, TALOS

_HOSTS = [
    content
    for case in CORPUS.values()
    for name, content in case.at(5050).tree.items()
    if isinstance(content, bytes) and name.endswith("hosts.toml")
]
_CHOICES = ((), (), ("r.example",), ("docker.io", "*"))
_SHOWN = 10
"""Faults that are printed for each editor."""

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
    """What is tried: the files to begin with, what is put into them, and what has to hold."""

    files: Sequence[bytes]
    pieces: Sequence[bytes]
    faults: Callable[[bytes, Path, random.Random], Iterator[str]]


def _pieces(*texts: str) -> tuple[bytes, ...]:
    return (b"\xff", *(text.encode() for text in (*_ANYWHERE, *texts)))


EDITORS: Mapping[str, Editor] = {
    "hosts.toml": Editor(
        _HOSTS,
        _pieces(*_TOML, *_TOML_TOO),
        lambda data, folder, chance: faults_of_hosts(
            data, folder, chance.choice(VERSIONS), chance.choice(_CHOICES[:3])
        ),
    ),
    "registries.yaml": Editor(
        [*REGISTRIES.values()],
        _pieces(*_YAML),
        lambda data, folder, chance: faults_of_registries(data, folder, chance.choice(_CHOICES)),
    ),
    "Talos": Editor(
        [*TALOS.values()],
        _pieces(*_YAML, *_MACHINE),
        lambda data, folder, chance: faults_of_talos(data, chance.choice(_CHOICES)),
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 1 where something did not hold."""
    arguments = _parser().parse_args(argv)
    chance = random.Random(arguments.seed)
    print(f"seed {arguments.seed}, {arguments.seconds:g} seconds for each editor", flush=True)
    faults = 0
    for name, editor in EDITORS.items():
        with tempfile.TemporaryDirectory(prefix="peili-fuzz-", dir=arguments.folder) as folder:
            inputs, found = _tried(editor, Path(folder), chance, arguments.seconds)
        print(f"{name}: {inputs:,} inputs, {len(found)} faults", flush=True)
        for data, what in sorted(found, key=lambda each: len(each[0]))[:_SHOWN]:
            print(f"  {data!r}\n    {what}", file=sys.stderr)
        faults += len(found)
    return 1 if faults else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench fuzz", description="Tries the editors with random files.")
    parser.add_argument("--seconds", type=float, default=60, help="for each editor (%(default)g)")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32), help="by default another one each time")
    shared = Path("/dev/shm")
    folder = shared if shared.is_dir() else Path(tempfile.gettempdir())
    parser.add_argument("--folder", type=Path, default=folder, help="where the files are (%(default)s)")
    return parser


def _tried(editor: Editor, folder: Path, chance: random.Random, seconds: float) -> tuple[int, list[tuple[bytes, str]]]:
    """How many inputs, and those for which something did not hold."""
    found: list[tuple[bytes, str]] = []
    inputs, end = 0, time.monotonic() + seconds
    while inputs == 0 or time.monotonic() < end:
        data = changed(chance.choice(editor.files), editor.pieces, editor.files, chance)
        inputs += 1
        try:
            found += [(data, what) for what in editor.faults(data, folder, chance)]
        except Exception:  # noqa: BLE001 - whatever it is, it is what we look for
            found.append((data, traceback.format_exc()))
    return inputs, found


def changed(data: bytes, pieces: Sequence[bytes], others: Sequence[bytes], chance: random.Random) -> bytes:
    """`data` with up to five random changes."""
    for _ in range(chance.choice((0, 1, 1, 1, 2, 2, 3, 5))):
        start = chance.randrange(len(data) + 1)
        end = min(len(data), start + chance.randrange(1, 12))
        what = chance.randrange(6)
        if what == 0:
            data = data[:start] + data[end:]
        elif what == 1:
            data = data[:start] + chance.choice(pieces) + data[end:]
        elif what == 2:
            lines, more = data.split(b"\n"), chance.choice(others).split(b"\n")
            first = chance.randrange(len(more))
            data = b"\n".join([*lines, *more[first : first + 3]])
        elif what == 3:
            lines = data.split(b"\n")
            chance.shuffle(lines)
            data = b"\n".join(lines)
        else:
            data = data[:start] + chance.choice(pieces) + data[start:]
    return data
