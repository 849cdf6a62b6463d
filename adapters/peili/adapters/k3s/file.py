"""A registries.yaml on disk: peili put in front of what is there, shown, and taken out again."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from pathlib import Path

from peili.adapters.files import atomic
from peili.adapters.files.config_path import is_generated
from peili.adapters.files.editor import CannotEdit, Change, Outcome, Problem
from peili.adapters.k3s import registries as texts
from peili.adapters.k3s.form import Unusable
from peili.adapters.k3s.settings import no_default_endpoint
from peili.adapters.k3s.showing import Shown, shown
from peili.mirror import ConfigError

FILES = (Path("/etc/rancher/k3s/registries.yaml"), Path("/etc/rancher/rke2/registries.yaml"))
"""Where k3s and RKE2 look, unless they are told another place by `--private-registry`."""

HEADER = "# Made by peili, which deletes this file when nothing else is left in it.\n"
"""The first line of a file that was not there before."""

_MOST = 1 << 20


def present() -> tuple[Path, ...]:
    """Those of `FILES` whose product is installed here: its directory is there."""
    return tuple(file for file in FILES if file.parent.is_dir())


class RegistriesFile:
    """One registries.yaml, which need not exist.

    Args:
        mirror: the URL of the local door, as this host's containerd reaches it.
        file: where it is.
        registries: whom for, as in ``docker.io`` and ``*`` (each registry without an entry of its own); by default for
            every registry: ``*``, and each that has an entry.

    Methods block: in asyncio, call them in a thread. Two at work on the same file wait for each other. The file is
    replaced at once or not at all, and keeps its mode and owner. k3s reads it when it starts: it has to be restarted
    after a change. Raises ConfigError, also for a file that k3s generates.
    """

    def __init__(self, mirror: str, *, file: str | Path = FILES[0], registries: Iterable[str] = ()) -> None:
        self.file = Path(file).absolute()
        self.registries = tuple(dict.fromkeys(registries))
        self.mirror = mirror
        texts.check(mirror, self.registries)
        _refuse_generated(self.file)

    def apply(self, *, dry_run: bool = False) -> Outcome:
        """Put the mirror in front wherever it is not yet. With `dry_run` nothing is written, only told."""
        return self._change(self._applied, dry_run=dry_run)

    def remove(self, *, dry_run: bool = False) -> Outcome:
        """Take out what `apply` put in, whatever the URL was then: what is left is what was there before, byte for
        byte, with what others have changed since.
        """
        return self._change(self._removed, dry_run=dry_run)

    def show(self, *, data_dir: Path | None = None) -> list[Shown]:
        """What the file says for each registry, and whether k3s has taken it over, as seen in what it generated below
        `data_dir`, by default its usual one. Raises CannotEdit, OSError.
        """
        text = _text(_data(self.file) or b"")
        try:
            return shown(text, self.mirror, data_dir or Path("/var/lib/rancher") / self.product)
        except Unusable as error:
            raise CannotEdit(str(error)) from error

    @property
    def product(self) -> str:
        """``k3s`` or ``rke2``, by the file's path."""
        return "rke2" if "rke2" in self.file.parts else "k3s"

    def _change(self, edit: Callable[[bytes | None], bytes | None], *, dry_run: bool) -> Outcome:
        try:
            places = [self.file, atomic.resolved(self.file)]  # for a link, the work is done next to its target
            with nullcontext() if dry_run else atomic.locked(places):
                if not dry_run:
                    atomic.remove_leftovers(places)
                before = _data(self.file)
                after = edit(before)
                if before == after:
                    return Outcome((), ())
                if not dry_run:
                    _write(self.file, after)
        except (CannotEdit, Unusable) as error:
            return Outcome((), (Problem(self.file, f"not changed: {error}"),))
        except OSError as error:
            return Outcome((), (Problem(self.file, f"not changed: {error.strerror}"),))
        return Outcome((Change(self.file, before, after),), ())

    def _removed(self, before: bytes | None) -> bytes | None:
        if before is None:
            return None
        header, text = _taken_apart(before)
        after = texts.removed(text, self.registries)
        if not header:
            return after.encode()
        return (header + after).encode() if after != texts.removed(after) else after.encode() if after.strip() else None

    def _applied(self, before: bytes | None) -> bytes:
        if "[" in self.mirror:
            raise CannotEdit(
                "k3s copies the mirror's URL into hosts.toml, and containerd 1.x can't read an IPv6 address there; "
                "write a host name instead, such as http://localhost:5050"
            )
        header, text = _taken_apart(before)
        base = texts.removed(text)
        wanted = texts.chosen(text, self.registries)
        setting = no_default_endpoint(self.file.parent)
        if setting is not None:
            alone = [each for each in wanted if not texts.endpoints(base, each)]
            if alone:
                raise CannotEdit(
                    f"{setting} has disable-default-registry-endpoint: peili would be all that {', '.join(alone)} has; "
                    "add the registry's own URL to its endpoints, or choose others with --registry"
                )
        return (header + texts.applied(text, self.mirror, wanted)).encode()


def _taken_apart(data: bytes | None) -> tuple[str, str]:
    """Our first line, and the rest."""
    if data is None:
        return HEADER, ""
    text = _text(data)
    return (HEADER, text.removeprefix(HEADER)) if text.startswith(HEADER) else ("", text)


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise CannotEdit("it is not UTF-8") from error


def _data(file: Path) -> bytes | None:
    try:
        with file.open("rb") as opened:
            data = opened.read(_MOST + 1)
    except FileNotFoundError:
        if file.is_symlink():
            raise CannotEdit("a symbolic link that leads nowhere") from None
        return None
    if len(data) > _MOST:
        raise CannotEdit(f"more than {_MOST >> 20} MiB")
    return data


def _write(file: Path, content: bytes | None) -> None:
    if content is None:
        atomic.remove(file, created=1)
    else:
        atomic.replace(file, content)


def _refuse_generated(file: Path) -> None:
    if is_generated(file) or file.name in {"hosts.toml", "config.toml"}:
        raise ConfigError("file", f"a registries.yaml; {file} is generated from it when k3s or RKE2 starts")
