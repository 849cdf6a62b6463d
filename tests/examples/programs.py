"""Runs the programs in examples/ as processes."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
_IDLE = "ERROR:    Cancel 0 running task(s), timeout graceful shutdown exceeded"
"""What uvicorn logs if the client of an idle TLS connection does not close it."""


@dataclass
class Program:
    """A running program. Its output goes to the file `output`."""

    process: subprocess.Popen[bytes]
    output: Path

    @property
    def text(self) -> str:
        return self.output.read_text(encoding="utf-8")

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Wait until the output matches `pattern`."""
        deadline = time.monotonic() + 60
        while (found := re.search(pattern, self.text)) is None:
            assert self.process.poll() is None, self.text
            assert time.monotonic() < deadline, self.text
            time.sleep(0.02)
        return found


@contextmanager
def running(name: str, directory: Path, *arguments: str | Path) -> Generator[Program]:
    """Run the example `name`. Warnings are errors in it, and it must exit cleanly within 60 s of SIGTERM."""
    output = directory / f"{name}-{time.monotonic_ns()}.log"
    command = [sys.executable, "-X", "dev", "-W", "error", EXAMPLES / f"{name}.py", *arguments]
    with output.open("wb") as out, subprocess.Popen(command, stdout=out, stderr=out) as process:
        program = Program(process, output)
        try:
            yield program
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) in {0, -signal.SIGTERM}, program.text
        finally:
            process.kill()
    text = program.text.replace(_IDLE, "")
    assert not [word for word in ("Traceback", "ERROR", "Warning", "Exception") if word in text], text
