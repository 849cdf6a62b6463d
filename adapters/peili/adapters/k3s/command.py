"""`peili hosts … --format k3s`: changes or shows the registries.yaml of k3s and RKE2."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from peili.adapters.files.editor import CannotEdit
from peili.adapters.files.printing import OutcomePrinter
from peili.adapters.k3s.registries_file import K3sRegistryView, RegistriesFile, installed_files
from peili.mirror import PeiliError


def run(action: str, mirror: str, registries: Sequence[str], *, file: Path | None, dry_run: bool, as_json: bool) -> int:
    """Run one action.

    Args:
        action: ``apply``, ``show`` or ``remove``.
        mirror: The URL at which containerd reaches the local door.
        registries: Host names, and ``*`` for all registries without an entry; empty for all.
        file: The file; None for the files of the products that are installed.
        dry_run: Print the changes as a diff; write nothing.
        as_json: Make `show` print JSON.

    Returns:
        The exit code.

    Raises:
        PeiliError: No product is installed, or a file cannot be shown.
    """
    found = installed_files() if file is None else (file,)
    if not found:
        raise PeiliError("neither /etc/rancher/k3s nor /etc/rancher/rke2 is there; use --file")
    files = [RegistriesFile(mirror, file=each, registries=registries) for each in found]
    if action == "show":
        return _show(files, as_json=as_json)
    return max(_edit(action, each, dry_run=dry_run) for each in files)


def _edit(action: str, file: RegistriesFile, *, dry_run: bool) -> int:
    units = "k3s or k3s-agent" if file.product == "k3s" else "rke2-server or rke2-agent"
    note = f"it takes effect when {file.product} is restarted (systemctl restart {units})"
    printer = OutcomePrinter(dry_run=dry_run, note=note)
    if action == "apply":
        file.apply(dry_run=dry_run, report=printer)
        return printer.end(f"nothing to do in {file.file}: peili is in front already")
    file.remove(dry_run=dry_run, report=printer)
    return printer.end(f"nothing to do in {file.file}: there is nothing of peili's")


def _show(files: Sequence[RegistriesFile], *, as_json: bool) -> int:
    found = {str(file.file): _read(file) for file in files}
    if as_json:
        entries = {file: [each.json() for each in registries] for file, registries in found.items()}
        sys.stdout.write(json.dumps({"files": entries}) + "\n")
        return 0
    for file, registries in found.items():
        texts = list(map(str, registries)) or ["nothing is configured: containerd asks each registry itself"]
        sys.stdout.write("\n\n".join([file, *texts]) + "\n")
    return 0


def _read(file: RegistriesFile) -> list[K3sRegistryView]:
    try:
        return file.show()
    except OSError as error:
        raise PeiliError(f"{file.file}: can't be read: {error.strerror}") from error
    except CannotEdit as error:
        raise PeiliError(f"{file.file}: {error}") from error
