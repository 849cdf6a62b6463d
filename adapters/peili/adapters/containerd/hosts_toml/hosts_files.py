"""`HostsFiles` puts peili in front of the registries in containerd's hosts.toml files, and takes it out again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import copy
from dataclasses import replace
from functools import partial
from pathlib import Path

from typing_extensions import override

from peili.adapters.containerd.hosts_toml.directories import (
    RegistryDirectory,
    all_directories,
    configured_registries,
    directory_names,
    registry_directories,
    registry_of,
)
from peili.adapters.containerd.hosts_toml.insertion import MirrorHost, insertion_edit
from peili.adapters.containerd.hosts_toml.model import CAPABILITIES, DEFAULT, RegistryHost, api_root
from peili.adapters.containerd.hosts_toml.status import RegistryStatus, registry_statuses
from peili.adapters.containerd.version import ContainerdVersion
from peili.adapters.files.config_path import parse_config_path
from peili.adapters.files.editor import CannotEdit, ConfigEditor, Edit
from peili.adapters.files.urls import check_mirror_url
from peili.mirror import ApiRoot, ConfigError, check_private, check_registries, default_roots, looks_like_registry

_CONTAINERD = Path("/etc/containerd/certs.d")
_DOCKER = Path("/etc/docker/certs.d")


class HostsFiles(ConfigEditor[RegistryStatus]):
    """Edits the hosts.toml files below the `config_path` of one containerd.

    `apply`, `remove` and `show` block: in asyncio, call them in a thread. A file that cannot be edited safely stays
    unchanged, and the outcome says why. If a run is interrupted, the next `apply` finishes its work, and the next
    `remove` undoes it.

    Args:
        mirror: The URL of the local door, as this host's containerd reaches it.
        config_path: The directories of containerd's setting of that name, in its order; one value may be several
            directories with ``:`` between them. The default is ``/etc/containerd/certs.d``, followed by
            ``/etc/docker/certs.d`` for containerd 2 and later.
        registries: The registries to put peili in front of, such as ``docker.io``; ``_default`` stands for every
            registry without a directory of its own. The default is every registry.
        capabilities: What containerd may request from peili: ``pull``, and ``resolve`` if peili's resolver resolves
            tags.
        version: containerd's version, such as ``2.1.4``. If it is not known, peili writes only what every version
            understands.
        dial_timeout: How long containerd 2.1 and later wait for a connection to peili, such as ``500ms``.
        ca: The file of the authority that has issued the certificate of a local door with TLS.
        client: The files of the certificate that containerd shows to the local door, and of its private key. The
            files of hosts.toml name them, and have nothing of the key.

    Raises:
        ConfigError: A value is wrong, others than its owner may read the key of `client`, or k3s generates one of the
            directories; then use `peili.adapters.k3s`.
    """

    def __init__(
        self,
        mirror: str,
        *,
        config_path: Iterable[str | Path] | None = None,
        registries: Iterable[str] = (),
        capabilities: Iterable[str] = ("pull",),
        version: str | None = None,
        dial_timeout: str = "500ms",
        ca: Path | None = None,
        client: tuple[Path, Path] | None = None,
    ) -> None:
        self._config_path = None if config_path is None else parse_config_path(config_path)
        self.registries = _checked_registries(registries)
        if client is not None:
            check_private("client", client[1])
        self._host = MirrorHost(
            check_mirror_url(mirror),
            _checked_capabilities(capabilities),
            dial_timeout,
            _parse_version(version),
            None if ca is None else ca.absolute(),
            None if client is None else (client[0].absolute(), client[1].absolute()),
        )

    @property
    def roots(self) -> tuple[Path, ...]:
        """The directories, in the order in which containerd searches them."""
        if self._config_path is not None:
            return self._config_path
        return (_CONTAINERD, _DOCKER) if self._host.version.searches_docker_directory else (_CONTAINERD,)

    def for_version(self, version: str) -> HostsFiles:
        """Return a copy for another version of containerd. Raises ConfigError."""
        other = copy(self)
        other._host = replace(self._host, version=_parse_version(version))  # noqa: SLF001 - the same class
        return other

    def for_every_registry(self) -> HostsFiles:
        """Return a copy for every registry."""
        other = copy(self)
        other.registries = ()
        return other

    @override
    def show(self) -> list[RegistryStatus]:
        """Return the status of every registry's directory. Raises OSError if one of `roots` cannot be read."""
        return registry_statuses(self.roots, self._host.url, self._host.version)

    def upstream_roots(self, registry: str) -> Sequence[ApiRoot]:
        """Return where containerd finds the API of `registry`, in its order and without peili. Blocks. Never raises.

        If the files do not say, or if it is not sure what they mean, it is where the registry is without them. That is
        only assumed (see `ApiRoot`), unless the registry has a directory of its own.
        """
        try:
            found = {each.registry.lower(): each for each in self.show() if each.hosts and not each.is_uncertain}
            own = found.get(registry.lower())
            status = own or found.get(DEFAULT)
            hosts = () if status is None else status.hosts
            roots = [root for host in hosts for root in self._roots(host, registry)] or default_roots(registry)
            return [replace(each, is_default=own is None, is_assumed=own is None and each.is_assumed) for each in roots]
        except (OSError, ValueError):
            return default_roots(registry)

    def _roots(self, host: RegistryHost, registry: str) -> Sequence[ApiRoot]:
        """Return the root of a host. Raises ValueError."""
        if host.leads_to(self._host.url) or not host.has_capabilities("resolve"):
            return ()
        root = api_root(host, registry)
        return (replace(root, is_assumed=host.url is None, is_mirror=not root.serves(registry)),)

    @override
    def _locked_paths(self) -> tuple[Path, ...]:
        # The directories of every version: the last `apply` may have been for another version.
        return self._config_path or (_CONTAINERD, _DOCKER)

    @override
    def _edits_to_apply(self) -> Iterator[Callable[[], Edit]]:
        for root in self.roots:
            _check_level(root)
        for registry in self.registries or (*configured_registries(self.roots), DEFAULT):
            yield partial(insertion_edit, self.roots, registry, self._host)

    @override
    def _edits_to_remove(self) -> Iterator[Callable[[], Edit]]:
        wanted = {name for registry in self.registries for name in directory_names(registry)}
        for root in self._locked_paths():
            of_registries = {directory.path for directory in registry_directories(root)}
            # Earlier versions of peili also wrote into directories whose name is no registry.
            for directory in all_directories(root):
                is_chosen = not wanted or directory.path.name in wanted
                if is_chosen and (directory.path in of_registries or _is_edited(directory)):
                    yield partial(_removal_edit, directory)


def _check_level(root: Path) -> None:
    """Check that `root` is neither a directory above the usual one nor that of a registry. Raises CannotEdit."""
    if root.parent.name == _CONTAINERD.name and looks_like_registry(registry_of(root.name)):
        raise CannotEdit(f"it is the directory of a registry; did you mean {root.parent}?", root)
    for below in (_CONTAINERD.relative_to("/"), Path("containerd/certs.d"), Path("certs.d")):
        if (root / below).is_dir():
            raise CannotEdit(f"containerd's config_path is a directory below it; did you mean {root / below}?", root)


def _is_edited(directory: RegistryDirectory) -> bool:
    """Return whether the file contains something that peili wrote."""
    try:
        return directory.original != directory.data
    except (CannotEdit, OSError):
        return False


def _removal_edit(directory: RegistryDirectory) -> Edit:
    try:
        return Edit(directory.file, directory.data, directory.original, created_levels=directory.content.created_levels)
    except CannotEdit as error:
        raise CannotEdit(str(error), directory.file) from error


def _checked_registries(registries: Iterable[str]) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(registries))
    check_registries(name for name in names if name != DEFAULT)
    return names


def _checked_capabilities(capabilities: Iterable[str]) -> tuple[str, ...]:
    names = tuple(capabilities)
    if "pull" not in names or not {*names} <= {*CAPABILITIES}:
        raise ConfigError("capabilities", f"pull, and maybe resolve, not {', '.join(names) or 'nothing'}")
    return names


def _parse_version(version: str | None) -> ContainerdVersion:
    try:
        return ContainerdVersion(is_known=False) if version is None else ContainerdVersion.parse(version)
    except ValueError as error:
        raise ConfigError("version", f"containerd's version, such as 2.1.4, not {version!r}") from error
