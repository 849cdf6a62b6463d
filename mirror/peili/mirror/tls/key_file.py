"""The text format of shared keys, and the files that hold them."""

from __future__ import annotations

import base64
import binascii
import os
import re
import secrets
import stat
from pathlib import Path

from peili.mirror.errors import ConfigError, PeiliError

KEY_SIZE = 32
"""Bytes of a key: 256 random bits."""
_PREFIX = "peili-key-v1:"
_LINE = re.compile(re.escape(_PREFIX) + r"([A-Za-z0-9+/]{43}=)")
_EXPECTED = f"lines of the form {_PREFIX}…, as `peili keys new` writes them"
_MAX_KEYS = 8
_MAX_FILE_SIZE = 16 * 1024
"""Bytes that are read: no useful file is larger."""
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def new_key() -> str:
    """Return a new random key as text, without a line break."""
    return format_key(secrets.token_bytes(KEY_SIZE))


def format_key(key: bytes) -> str:
    """Return the text of a key."""
    return _PREFIX + base64.b64encode(key).decode("ascii")


def parse_keys(text: str) -> tuple[bytes, ...]:
    """Return the keys in the text of a key file: one a line. Empty lines and lines that begin with # do not count.

    Raises:
        ValueError: There is no key, or something else. The message does not repeat it: it may be a misspelt key.
    """
    keys: list[bytes] = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() and not line.lstrip().startswith("#"):
            keys.append(_parse_key(line.strip(), number))
    if not keys:
        raise ValueError(f"it has no key; expected {_EXPECTED}")
    if len(keys) > _MAX_KEYS:
        raise ValueError(f"it has {len(keys)} keys; expected {_MAX_KEYS} or less")
    if len(set(keys)) < len(keys):
        raise ValueError("it has the same key twice")
    return tuple(keys)


def _parse_key(line: str, number: int) -> bytes:
    match = _LINE.fullmatch(line)
    try:
        key = base64.b64decode(match[1], validate=True) if match else b""
    except binascii.Error:
        key = b""
    if len(key) != KEY_SIZE or format_key(key) != line:  # several texts could stand for the same bytes
        raise ValueError(f"line {number} is not a key; expected {_EXPECTED}")
    return key


def read_keys(path: Path) -> tuple[bytes, ...]:
    """Return the keys in a file.

    Raises:
        ConfigError: The file cannot be read or is malformed, or other users may read or write it.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            _check_status(path, os.fstat(descriptor))
            data = os.read(descriptor, _MAX_FILE_SIZE)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise ConfigError("shared_key_file", f"{path} can't be read: {(error.strerror or '').lower()}") from error
    try:
        return parse_keys(data.decode("ascii"))
    except UnicodeDecodeError as error:
        raise ConfigError("shared_key_file", f"{path} is not a key file; expected {_EXPECTED}") from error
    except ValueError as error:
        raise ConfigError("shared_key_file", f"{path} is not a key file: {error}") from error


def _check_status(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise ConfigError("shared_key_file", f"{path} is not a file")
    if status.st_mode & _OTHERS:
        mode = f"{stat.S_IMODE(status.st_mode):04o}"
        raise ConfigError(
            "shared_key_file", f"other users may use {path}, which has mode {mode}; run: chmod 600 {path}"
        )


def create_key_file(path: Path) -> None:
    """Create a file with a new key, which only its owner may read.

    Raises:
        PeiliError: The file exists, or cannot be written.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError as error:
        raise PeiliError(f"{path} exists, and is not changed") from error
    except OSError as error:
        raise PeiliError(f"{path} can't be created: {(error.strerror or '').lower()}") from error
    try:
        with os.fdopen(descriptor, "w") as file:
            os.fchmod(descriptor, 0o600)  # also if the umask took rights away from the owner
            file.write(f"{new_key()}\n")
            file.flush()
            os.fsync(descriptor)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise PeiliError(f"{path} can't be written: {(error.strerror or '').lower()}") from error
