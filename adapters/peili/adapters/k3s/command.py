"""`peili hosts … --format k3s`: registries.yaml of k3s or RKE2."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence

from peili.adapters.files.changes import Outcome
from peili.adapters.files.leftalone import LeftAlone
from peili.adapters.k3s.file import RegistriesFile, present
from peili.adapters.k3s.showing import Shown
from peili.mirror import PeiliError


def run(arguments: argparse.Namespace, mirror: str, registries: Sequence[str]) -> int:
    """One of the command's actions on ``arguments.file``, or on those there are; its exit code. Raises PeiliError."""
    found = present() if arguments.file is None else (arguments.file,)
    if not found:
        raise PeiliError("neither /etc/rancher/k3s nor /etc/rancher/rke2 is there; use --file")
    files = [RegistriesFile(mirror, file=each, registries=registries) for each in found]
    return _ACTIONS[arguments.action](arguments, files)


def _apply(arguments: argparse.Namespace, files: Sequence[RegistriesFile]) -> int:
    return _changed(arguments, files, RegistriesFile.apply, "peili is in front already")


def _remove(arguments: argparse.Namespace, files: Sequence[RegistriesFile]) -> int:
    return _changed(arguments, files, RegistriesFile.remove, "there is nothing of peili's")


def _changed(
    arguments: argparse.Namespace, files: Sequence[RegistriesFile], change: Callable[..., Outcome], nothing: str
) -> int:
    code = 0
    for file in files:
        outcome = change(file, dry_run=arguments.dry_run)
        for problem in outcome.problems:
            sys.stderr.write(f"peili: {problem}\n")
            code = 1
        for each in outcome.changes:
            sys.stdout.write(each.diff() if arguments.dry_run else f"{each}\n{_restart(file.product)}\n")
        if not outcome.changes and not outcome.problems:
            sys.stdout.write(f"nothing to do in {file.file}: {nothing}\n")
    return code


def _restart(product: str) -> str:
    units = "k3s or k3s-agent" if product == "k3s" else "rke2-server or rke2-agent"
    return f"it is in force once {product} has been restarted (systemctl restart {units})"


def _show(arguments: argparse.Namespace, files: Sequence[RegistriesFile]) -> int:
    found = {str(file.file): _shown(file) for file in files}
    if arguments.json:
        said = {file: [each.json() for each in registries] for file, registries in found.items()}
        sys.stdout.write(json.dumps({"files": said}) + "\n")
        return 0
    for file, registries in found.items():
        nothing = ["nothing is configured: each registry is asked itself"]
        sys.stdout.write(f"{file}\n\n" + "\n\n".join(map(str, registries or nothing)) + "\n")
    return 0


def _shown(file: RegistriesFile) -> list[Shown]:
    try:
        return file.show()
    except OSError as error:
        raise PeiliError(f"{file.file}: can't be read: {error.strerror}") from error
    except LeftAlone as error:
        raise PeiliError(f"{file.file}: left alone: {error}") from error


_ACTIONS: Mapping[str, Callable[[argparse.Namespace, Sequence[RegistriesFile]], int]] = {
    "apply": _apply,
    "show": _show,
    "remove": _remove,
}
