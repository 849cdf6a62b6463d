"""Measures, prints one table, and writes it as JSON where a file is named: `python -m bench [FILE]`."""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from bench.rows import Row, misses, serve_and_relay


def main() -> int:
    """Exit code 1 where the reference is missing."""
    if shutil.which("nginx") is None:
        print("bench: nginx is the reference and is not installed: apt-get install nginx-light", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="peili-bench-") as folder:
        Path(folder).chmod(0o755)  # nginx's workers are somebody else
        rows = [*serve_and_relay(Path(folder)), misses()]
    machine = f"{os.cpu_count()} processors, Python {platform.python_version()}, {platform.system()}"
    print(table(rows), f"\n{machine}", sep="\n")
    for file in sys.argv[1:]:
        document = {"machine": machine, "rows": [asdict(row) for row in rows]}
        Path(file).write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    return 0


def table(rows: list[Row]) -> str:
    """The rows as Markdown."""
    lines = ["| what | ours | reference | ratio | spread | budget |", "|---|---|---|---|---|---|"]
    for row in rows:
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        lines.append(f"| {row.what} | {row.ours} | {row.reference} | {ratio} | {row.spread} | {row.budget} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
