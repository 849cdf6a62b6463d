"""Works out a hosts.toml in which peili's door is the first host. Reads files, and writes none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from peili.adapters.containerd.hosts_toml.directories import (
    RegistryDirectory,
    directory_names,
    find_directory,
    insert_section,
    registry_directories,
)
from peili.adapters.containerd.hosts_toml.interpretation import NO_HOST, certificate_settings, interpret
from peili.adapters.containerd.hosts_toml.model import (
    CAPABILITIES,
    RegistryHost,
    bracket_message,
    hosts_of,
    registry_url,
    with_absolute_paths,
)
from peili.adapters.containerd.hosts_toml.toml_subset import Document, decode, first_table_offset, parse
from peili.adapters.containerd.hosts_toml.toml_text import format_document, format_key, format_value
from peili.adapters.containerd.version import ContainerdVersion
from peili.adapters.files.editor import Ambiguous, CannotEdit, Edit
from peili.adapters.files.urls import same_door


@dataclass(frozen=True, slots=True)
class MirrorHost:
    """peili's door as a host in hosts.toml.

    Attributes:
        url: The door's URL.
        capabilities: What containerd may request from it.
        dial_timeout: How long containerd waits for a connection, such as ``500ms``.
        version: The containerd that reads the file.
        ca: The authority of the door's certificate; None for those of the system.
        client: The certificate that containerd shows, and its private key.
    """

    url: str
    capabilities: tuple[str, ...]
    dial_timeout: str
    version: ContainerdVersion
    ca: Path | None = None
    client: tuple[Path, Path] | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """The keys of its table."""
        settings: dict[str, Any] = {"capabilities": list(self.capabilities)}
        if self.ca is not None:
            settings["ca"] = str(self.ca)
        if self.client is not None:
            settings["client"] = [[str(each) for each in self.client]]
        path = urlsplit(self.url).path
        if path != "/v2" and path.endswith("/v2"):  # the root of the API itself
            settings["override_path"] = True
        if self.version.is_known and self.version.has_dial_timeout:
            settings["dial_timeout"] = self.dial_timeout
        return settings

    def add_to(self, document: Document) -> Document:
        """Return a copy of `document` with this host in front of all others."""
        return {**document, "host": {self.url: self.settings, **hosts_of(document)}}

    def to_dotted_keys(self) -> str:
        """Return the host as top-level keys, ``host."…".capabilities = […]``."""
        host = f"host.{format_key(self.url)}"
        return "\n".join(f"{host}.{format_key(key)} = {format_value(value)}" for key, value in self.settings.items())


def insertion_edit(roots: Sequence[Path], registry: str, host: MirrorHost) -> Edit:
    """Return the edit that puts `host` in front of the hosts of `registry`; the others stay as they are.

    Args:
        roots: The directories of `config_path`.
        registry: The registry, or ``_default``.
        host: peili's door.

    Raises:
        CannotEdit: It is not possible, or not certain to work.
        OSError: A file or directory cannot be read.
    """
    found = find_directory(roots, registry)
    # `target` is where peili writes; `found.directory` is what containerd would use without peili.
    target = found.created_by_peili
    if target is None:
        own = found.directory if found.directory is not None and found.directory.registry == registry else None
        target = own or RegistryDirectory(found.root / directory_names(registry)[0])
    file = (found.directory or target).file
    try:
        return Edit(target.file, target.data, _new_content(target, found.directory, host))
    except Ambiguous as error:
        raise CannotEdit(f"peili cannot tell how containerd reads it: {error}", file) from error
    except CannotEdit as error:
        raise CannotEdit(str(error), file) from error


def _new_content(target: RegistryDirectory, origin: RegistryDirectory | None, host: MirrorHost) -> bytes:
    """Return the new content of a hosts.toml.

    Args:
        target: The directory of that file.
        origin: The directory that containerd would use without peili: the same, that of ``_default``, or None.
        host: peili's door.
    """
    if "[" in host.url and not all(each.reads_brackets_in_headers for each in host.version.candidates):
        raise CannotEdit(bracket_message(f'[host."{host.url}"]'))
    if target.original:  # the registry has a file of its own
        return _insert_into(target, target.original, host)
    document: Document = {}
    if origin is not None:  # the new file must contain what containerd uses now
        _check_is_read(origin, host.version)
        if origin.original and not _has_no_host(origin, host.version):
            document = parse(decode(origin.original)[1])
        elif origin.path.is_dir():
            document = certificate_settings(origin.path)  # containerd does not use these files if there is a hosts.toml
        if origin is not target:
            document = with_absolute_paths(document, origin.path)
    content = insert_section(
        b"", 0, format_document(host.add_to(document)), created_levels=_created_levels(target), newline="\n"
    )
    if not _is_correct(content, target, origin, host):
        where = "" if origin is None else f" in front of the hosts in {origin.file}"
        raise CannotEdit(f"peili cannot write a file that puts peili first{where}")
    return content


def _check_is_read(directory: RegistryDirectory, version: ContainerdVersion) -> None:
    """Check that containerd reads the file, except if only a host is missing. Raises CannotEdit, OSError."""
    for each in version.candidates:
        found = interpret(directory.original, directory.path, each)
        if found.rejected and not found.has_no_host:
            raise CannotEdit(f"containerd ignores the file: {found.rejected}")


def _has_no_host(directory: RegistryDirectory, version: ContainerdVersion) -> bool:
    return any(interpret(directory.original, directory.path, each).has_no_host for each in version.candidates)


def _insert_into(target: RegistryDirectory, original: bytes, host: MirrorHost) -> bytes:
    """Return `original` with a section that makes `host` the first one and changes nothing else."""
    _check_is_read(target, host.version)
    if _is_present(target, host):
        return original
    byte_order_mark, text = decode(original)
    document = parse(text)
    has_no_host = _has_no_host(target, host.version)
    hidden = certificate_settings(target.path) if has_no_host else {}
    hidden = {key: value for key, value in hidden.items() if key not in document}
    newline = "\r\n" if "\r\n" in text else "\n"
    created_levels = _created_levels(target)
    for offset, section in (
        (first_table_offset(text), format_document({**hidden, **host.add_to({})})),
        (0, host.to_dotted_keys()),  # for files that write hosts as dotted keys
    ):
        position = len((byte_order_mark + text[:offset]).encode())
        content = insert_section(original, position, section, created_levels=created_levels, newline=newline)
        expected = host.add_to({**document, **hidden})
        if _parses_to(content, expected) and _is_correct(content, target, target, host):
            return content
    if has_no_host:
        raise CannotEdit(
            f"{NO_HOST}; its other settings would take effect together with peili: add a host, or delete the file"
        )
    raise CannotEdit(
        'peili cannot put a host in front of the others; write each host as its own table, [host."https://…"]'
    )


def _is_present(target: RegistryDirectory, host: MirrorHost) -> bool:
    """Return whether a user has added the host. Raises CannotEdit if they did it in a way that does not work."""
    for version in host.version.candidates:
        hosts = interpret(target.original, target.path, version).hosts
        ours = [each for each in hosts if each.leads_to(host.url)]
        if ours and hosts[0] != ours[0]:
            raise CannotEdit(f"it contains {ours[0].url} already, but not as the first host; move it up")
        if ours and not ours[0].has_capabilities("pull"):
            raise CannotEdit(f'it contains {ours[0].url} already, but without the capability "pull"; add that')
        if not ours and any(each.url == host.url for each in hosts):
            raise CannotEdit(f"it contains {host.url} already, but with override_path; remove override_path")
        if not ours:
            return False
    return True


def _parses_to(content: bytes, expected: Document) -> bool:
    try:
        return parse(decode(content)[1]) == expected
    except Ambiguous:
        return False


def _is_correct(content: bytes, target: RegistryDirectory, origin: RegistryDirectory | None, host: MirrorHost) -> bool:
    """Return whether each possible containerd tries `host` first, and then the same hosts as by `origin`."""
    for version in host.version.candidates:
        before: tuple[RegistryHost, ...] = (RegistryHost(None),)
        if origin is not None:
            before = interpret(origin.original, origin.path, version).hosts
        try:
            after = interpret(content, target.path, version)
        except Ambiguous:
            return False
        first, *rest = after.hosts
        is_same_rest = _identities(rest, target.registry) == _identities(before, target.registry)
        if after.rejected or first.url != host.url or not is_same_rest:
            return False
    return True


def _identities(hosts: Sequence[RegistryHost], registry: str) -> list[tuple[str | None, set[str], Mapping[str, Any]]]:
    """Return values that are equal if containerd sends the same requests to the same hosts."""
    own = registry_url(registry)
    return [
        (
            None if host.url is not None and own is not None and same_door(host.url, own) else host.url,
            {*host.capabilities} & {*CAPABILITIES},
            host.values,
        )
        for host in hosts
    ]


def _created_levels(target: RegistryDirectory) -> int:
    """Return how much of the path of the target's file peili creates, and `remove` has to remove again."""
    if target.data is not None:
        return target.content.created_levels
    missing = [each for each in (target.path, *target.path.parents) if not each.exists()]
    if len(missing) != 1:
        return 1 + len(missing)
    # If peili created the root, too, the last file that is removed takes the root with it.
    return max([2, *(each for each in _created_levels_in(target.path.parent) if each > 2)])


def _created_levels_in(root: Path) -> list[int]:
    found: list[int] = []
    for directory in registry_directories(root):
        try:
            found.append(directory.content.created_levels)
        except (CannotEdit, OSError):
            continue  # reported for that directory
    return found
