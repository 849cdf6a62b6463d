"""The programs in examples/, as processes."""

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
"""uvicorn on a TLS connection whose other side keeps it idle, and does not answer its end."""


@dataclass
class Program:
    """One that runs. What it prints goes to `output`."""

    process: subprocess.Popen[bytes]
    output: Path

    @property
    def text(self) -> str:
        return self.output.read_text(encoding="utf-8")

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Wait until it printed `pattern`."""
        deadline = time.monotonic() + 60
        while (found := re.search(pattern, self.text)) is None:
            assert self.process.poll() is None, self.text
            assert time.monotonic() < deadline, self.text
            time.sleep(0.02)
        return found


@contextmanager
def running(name: str, directory: Path, *arguments: str | Path) -> Generator[Program]:
    """The example `name`. Every warning is an error in it; it has to end well, and soon, when it is told to."""
    output = directory / f"{name}-{time.monotonic_ns()}.log"
    command = [sys.executable, "-X", "dev", "-W", "error", EXAMPLES / f"{name}.py", *arguments]
    with output.open("wb") as out, subprocess.Popen(command, stdout=out, stderr=out) as process:
        program = Program(process, output)
        try:
            yield program
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) in {0, -signal.SIGTERM}, program.text
        finally:
            process.kill()
    text = program.text.replace(_IDLE, "")
    assert not [wrong for wrong in ("Traceback", "ERROR", "Warning", "Exception") if wrong in text], text
