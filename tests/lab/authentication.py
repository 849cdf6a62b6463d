"""How a registry of the laboratory authenticates users: by htpasswd here, by tokens in token_server.py."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

_PASSWORD = "correct horse"
_HASH = "$2y$04$abcdefghijklmnopqrstuujydOTSfIH/d5oUHpsygqV5X9xJLQc6e"
"""bcrypt's hash of the password. docker-registry takes no other hash, and Python has none of this kind."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """A user's name and password. Neither contains a colon."""

    user: str
    password: str

    def __str__(self) -> str:
        return f"{self.user}:{self.password}"


class Authentication(Protocol):
    """What a registry needs to know to authenticate users."""

    @property
    def settings(self) -> str:
        """The value of `auth` in docker-registry's configuration, in YAML on one line."""
        ...

    @property
    def publisher(self) -> Credentials:
        """A user who may push and pull everything."""
        ...


class Htpasswd:
    """The registry challenges with Basic. It has one user, who may do everything, and nobody else may do anything.

    Args:
        directory: An existing directory for the file of the passwords.
    """

    def __init__(self, directory: Path) -> None:
        self.publisher = Credentials("publisher", _PASSWORD)
        self._file = directory / "htpasswd"
        self._file.write_text(f"{self.publisher.user}:{_HASH}\n")

    @property
    def settings(self) -> str:
        """See `Authentication`."""
        return f'{{htpasswd: {{realm: laboratory, path: "{self._file}"}}}}'
