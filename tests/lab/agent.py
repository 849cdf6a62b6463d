"""One host's peili, run as its users run it: `peili serve` with a configuration file."""

from __future__ import annotations

import http.client
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.lab.network import LOCAL_PORT, PEER_PORT, Answer, Place
from tests.lab.processes import CommandFailed, Process, wait_for

Sections = Mapping[str, Mapping[str, Any]]


class Agent:
    """`peili serve` at `place`, kept below `directory`. Its identity is the name that it has in the laboratory."""

    def __init__(self, place: Place, name: str, directory: Path) -> None:
        self._place = place
        self.configuration = directory / "peili.toml"
        self._log = directory / "peili.log"
        self._process: Process | None = None
        self.identity = name
        self.local = f"{place.loopback}:{place.port(LOCAL_PORT)}"
        self.peer = f"{place.address}:{place.port(PEER_PORT)}"
        directory.mkdir(parents=True)

    @property
    def process(self) -> Process:
        """The running process."""
        assert self._process is not None, f"peili of {self.identity} is not started"
        return self._process

    def start(self, sections: Sections) -> None:
        """Start it with these sections besides its doors, and wait until it is ready."""
        doors: Sections = {
            "local": {"listen": self.local},
            "peer": {"listen": self.peer, "insecure": True},
            "mirror": {"identity": self.identity},
        }
        self.configuration.write_text(_toml({**doors, **sections}))
        command = [sys.executable, "-m", "peili.adapters.standalone", "serve", "--config", str(self.configuration)]
        self._process = Process(self._place.command(command), self._log)
        try:
            wait_for(self.ready, f"peili of {self.identity} is ready")
        except AssertionError as error:
            error.add_note(self.log())
            raise

    def stop(self) -> None:
        """Stop it as systemd would, if it runs."""
        if self._process is not None:
            self._process.stop()
            self._process = None

    def kill(self) -> None:
        """End it at once, as a crash or a power cut would."""
        self.process.kill()
        self._process = None

    def log(self) -> str:
        """All that it has logged."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def ready(self) -> bool:
        """Whether it says so itself."""
        if not self.process.running:
            raise CommandFailed(f"peili of {self.identity} has ended:\n{self.log()}")
        try:
            return self.ask("GET", "/readyz").status == 200
        except (OSError, http.client.HTTPException):
            return False

    def ask(self, method: str, path: str, headers: Mapping[str, str] | None = None) -> Answer:
        """The local door's answer to this host. Raises OSError, http.client.HTTPException."""
        return self._place.ask(method, self._place.loopback, self._place.port(LOCAL_PORT), path, headers)

    def has_open(self, file: Path) -> bool:
        """Whether it is reading `file` at this moment."""
        for descriptor in Path("/proc", str(self.process.pid), "fd").iterdir():
            try:
                if descriptor.readlink() == file:
                    return True
            except FileNotFoundError:  # closed since it was listed
                continue
        return False


def _toml(sections: Sections) -> str:
    """Sections of strings, numbers, booleans and lists of these, which TOML writes as JSON does."""
    lines: list[str] = []
    for section, values in sections.items():
        lines += [f"[{section}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items())]
    return "\n".join(lines) + "\n"
