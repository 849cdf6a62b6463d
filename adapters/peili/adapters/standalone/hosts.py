"""`peili hosts`, and the extension that the section ``[hosts]`` configures: both change containerd's configuration."""

from __future__ import annotations

import asyncio
import importlib
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypedDict

from peili.adapters.containerd import ContainerdHosts, HostsFiles
from peili.adapters.containerd.hosts_toml.model import DEFAULT
from peili.adapters.containerd.version import checked_version, find_version
from peili.adapters.files.printing import OutcomePrinter
from peili.adapters.standalone.config import Config
from peili.adapters.standalone.listen_addresses import url_on_this_host
from peili.mirror import ApiRoot, ConfigError, PeiliError, check_private


def extension(config: Config, local: Sequence[str] = ()) -> ContainerdHosts:
    """Return the extension that puts peili first in containerd's registries while a mirror runs.

    Args:
        config: The configuration of the mirror.
        local: The addresses of the local door, if they are not those in `config`.

    Raises:
        ConfigError: containerd cannot reach the door, or the section ``[hosts]`` is wrong.
    """
    files = HostsFiles(
        mirror_url(local or config.local.listen, has_tls=config.local.cert is not None),
        config_path=config.hosts.config_path or None,
        registries=_registries(config),
        capabilities=_capabilities(config),
        **_certificates(config),
    )
    return ContainerdHosts(files, socket=_socket(config))


def upstream_roots(config: Config, local: Sequence[str] = ()) -> Callable[[str], Sequence[ApiRoot]]:
    """Return what finds the API of a registry as this host's containerd does; see `HostsFiles.upstream_roots`.

    Args:
        config: The configuration of the mirror.
        local: The addresses of the local door, if they are not those in `config`.
    """
    addresses = [each for each in local or config.local.listen if not each.endswith(":0")]
    mirror = mirror_url(addresses, has_tls=config.local.cert is not None) if addresses else "http://127.0.0.1:5050"
    return HostsFiles(mirror, config_path=config.hosts.config_path or None).upstream_roots


def run(
    action: str,
    config: Config,
    *,
    file_format: str,
    file: Path | None,
    config_path: Sequence[str],
    registries: Sequence[str],
    mirror: str | None,
    version: str | None,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Run `peili hosts`, and return the exit code.

    Args:
        action: ``apply``, ``show`` or ``remove``.
        config: The mirror's configuration. It applies to each option that the user did not give.
        file_format: ``containerd``, ``k3s`` or ``talos``.
        file: For k3s and Talos, the file to change or to read.
        config_path: For containerd, the directories of its setting of that name.
        registries: Host names, and ``_default`` for all other registries.
        mirror: The URL at which containerd reaches peili.
        version: containerd's version; by default that of the running or the installed one.
        dry_run: Print the changes as a diff; write nothing.
        as_json: Make `show` print JSON.

    Raises:
        ConfigError: An option or the configuration is wrong.
        PeiliError: A file cannot be read.
    """
    mirror = mirror or mirror_url(config.local.listen, has_tls=config.local.cert is not None)
    registries = registries or (_registries(config) if action == "apply" else ())
    if file_format != "containerd":
        command = importlib.import_module(f"peili.adapters.{file_format}.command")
        names = tuple("*" if name == DEFAULT else name for name in registries)
        return int(command.run(action, mirror, names, file=file, dry_run=dry_run, as_json=as_json))
    version = version or checked_version(asyncio.run(find_version(_socket(config))), _warn)
    files = HostsFiles(
        mirror,
        config_path=config_path or config.hosts.config_path or None,
        registries=registries,
        capabilities=_capabilities(config),
        version=version,
        **_certificates(config),
    )
    code = _run_action(action, files, dry_run=dry_run, as_json=as_json)
    if action == "apply":
        _warn_of_kubernetes(version, _socket(config))
    return code


def _run_action(action: str, files: HostsFiles, *, dry_run: bool, as_json: bool) -> int:
    if action == "show":
        return _show(files, as_json=as_json)
    printer = OutcomePrinter(dry_run=dry_run)
    if action == "apply":
        files.apply(dry_run=dry_run, report=printer)
        return printer.end("nothing to do: peili is in front already")
    files.remove(dry_run=dry_run, report=printer)
    return printer.end("nothing to do: there is nothing of peili's")


class _Certificates(TypedDict):
    """The arguments of `HostsFiles` for TLS."""

    ca: Path | None
    client: tuple[Path, Path] | None


def _certificates(config: Config) -> _Certificates:
    """Return the files with which containerd reaches a local door with TLS. Raises ConfigError."""
    cert, key = config.hosts.client_cert, config.hosts.client_key
    if (cert is None) != (key is None):
        missing = "client_key" if key is None else "client_cert"
        raise ConfigError(f"hosts.{missing}", "both client_cert and client_key, or neither")
    if cert is None or key is None:
        return {"ca": config.hosts.ca, "client": None}
    check_private("hosts.client_key", key)
    return {"ca": config.hosts.ca, "client": (cert, key)}


def mirror_url(local: Sequence[str], *, has_tls: bool = False) -> str:
    """Return the URL at which this host's containerd reaches a local door at the addresses `local`.

    Raises:
        ConfigError: The port is not fixed.
    """
    if int(local[0].rpartition(":")[2]) == 0:
        raise ConfigError("local.listen", "an address with a fixed port, because containerd's configuration names it")
    return url_on_this_host(local[0], has_tls=has_tls)


def _registries(config: Config) -> tuple[str, ...]:
    """Return the registries to change; none means every registry.

    containerd has no wildcards, so a mirror for ``*.example.com`` is put in front of every registry. The mirror answers
    404 at once for a registry that it does not serve.
    """
    served = config.mirror.registries
    return config.hosts.registries or (() if any("*" in each for each in served) else tuple(map(str.lower, served)))


def _capabilities(config: Config) -> tuple[str, ...]:
    """containerd need not ask a mirror for tags if its resolver never resolves one."""
    return ("pull",) if config.resolver.kind == "defer" else ("pull", "resolve")


def _socket(config: Config) -> Path:
    from peili.stores.containerd.options import DEFAULT_ADDRESS  # noqa: PLC0415 - as below

    address = config.store.options.get("address") if config.store.kind == "containerd" else None
    return Path(address.removeprefix("unix://") if isinstance(address, str) else DEFAULT_ADDRESS)


def _warn_of_kubernetes(version: str | None, socket: Path) -> None:
    # `serve` imports this module for every mirror, and needs neither the doctor nor gRPC.
    from peili.adapters.containerd.doctor.daemon_checks import kubernetes_warning  # noqa: PLC0415

    if warning := kubernetes_warning(version, socket):
        _warn(warning)


def _warn(line: str) -> None:
    sys.stderr.write(f"peili: {line}\n")


def _show(files: HostsFiles, *, as_json: bool) -> int:
    try:
        found = files.show()
    except OSError as error:
        raise PeiliError(f"{error.filename}: {error.strerror}") from error
    if as_json:
        sys.stdout.write(json.dumps({"registries": [each.json() for each in found]}) + "\n")
    else:
        nothing = f"nothing is configured in {', '.join(map(str, files.roots))}: containerd asks each registry itself"
        sys.stdout.write("\n\n".join(map(str, found)) + "\n" if found else f"{nothing}\n")
    return 0
