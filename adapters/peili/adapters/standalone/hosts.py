"""`peili hosts` and the section ``[hosts]``: containerd's hosts.toml files, by the mirror's own configuration."""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from peili.adapters.containerd import ContainerdHosts, HostsFiles, Outcome
from peili.adapters.containerd.doctor.notice import unread
from peili.adapters.containerd.doctor.version import understood, version_at, version_installed
from peili.adapters.containerd.hosts_toml.meaning import DEFAULT
from peili.adapters.standalone.config.config import Config
from peili.mirror import ConfigError, PeiliError
from peili.stores.containerd.options import DEFAULT_ADDRESS

_ANY = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "[::]": "[::1]"}  # noqa: S104 - told apart, not listened on


def extension(config: Config, local: Sequence[str] = ()) -> ContainerdHosts:
    """What keeps peili in front while `config`'s mirror runs, with its local door at `local`, if not where `config`
    says. Raises ConfigError.
    """
    files = HostsFiles(
        mirror_url(local or config.local),
        config_path=config.hosts.config_path or None,
        registries=_registries(config),
        capabilities=_capabilities(config),
    )
    return ContainerdHosts(files, socket=_socket(config))


def run(arguments: argparse.Namespace, config: Config) -> int:
    """One of the command's actions, as `hosts_arguments` describes them; its exit code. Raises PeiliError."""
    version = arguments.containerd_version or understood(asyncio.run(_version(config)), _warn)
    files = HostsFiles(
        arguments.mirror or mirror_url(config.local),
        config_path=arguments.config_path or config.hosts.config_path or None,
        registries=arguments.registry or (_registries(config) if arguments.action == "apply" else ()),
        capabilities=_capabilities(config),
        version=version,
    )
    code = _ACTIONS[arguments.action](arguments, files)
    if arguments.action == "apply" and (why := unread(version, _socket(config))):
        _warn(why)
    return code


def run_other(arguments: argparse.Namespace, config: Config) -> int:
    """The same for another format than hosts.toml. Raises ConfigError, PeiliError."""
    command = importlib.import_module(f"peili.adapters.{arguments.format}.command")
    names = arguments.registry or (_registries(config) if arguments.action == "apply" else ())
    registries = tuple("*" if name == DEFAULT else name for name in names)
    code: int = command.run(arguments, arguments.mirror or mirror_url(config.local), registries)
    return code


def mirror_url(local: Sequence[str]) -> str:
    """Where this host's containerd reaches the local door, which listens at `local`. Raises ConfigError."""
    host, _, port = local[0].rpartition(":")
    if int(port) == 0:
        raise ConfigError("local.listen", "an address with a fixed port, for containerd to be told")
    return f"http://{_ANY.get(host, host)}:{port}"


def _registries(config: Config) -> tuple[str, ...]:
    """Those that were chosen, else those that the mirror is for; none for every registry. One with a wildcard can't be
    written down for containerd; where containerd asks for more, the mirror says in a moment that it is not for it.
    """
    meant = config.mirror.registries
    return config.hosts.registries or (() if any("*" in each for each in meant) else tuple(map(str.lower, meant)))


def _capabilities(config: Config) -> tuple[str, ...]:
    """A resolver that never answers for a tag need not be asked."""
    return ("pull",) if config.resolver.kind == "defer" else ("pull", "resolve")


def _socket(config: Config) -> Path:
    address = config.store.options.get("address") if config.store.kind == "containerd" else None
    return Path(address.removeprefix("unix://") if isinstance(address, str) else DEFAULT_ADDRESS)


async def _version(config: Config) -> str | None:
    return await version_at(_socket(config)) or await version_installed()


def _warn(line: str) -> None:
    sys.stderr.write(f"peili: {line}\n")


def _apply(arguments: argparse.Namespace, files: HostsFiles) -> int:
    return _told(arguments, files.apply(dry_run=arguments.dry_run), "peili is in front already")


def _remove(arguments: argparse.Namespace, files: HostsFiles) -> int:
    return _told(arguments, files.remove(dry_run=arguments.dry_run), "there is nothing of peili's")


def _told(arguments: argparse.Namespace, outcome: Outcome, nothing: str) -> int:
    for change in outcome.changes:
        sys.stdout.write(change.diff() if arguments.dry_run else f"{change}\n")
    for problem in outcome.problems:
        sys.stderr.write(f"peili: {problem}\n")
    if not outcome.changes and not outcome.problems:
        sys.stdout.write(f"nothing to do: {nothing}\n")
    return 1 if outcome.problems else 0


def _show(arguments: argparse.Namespace, files: HostsFiles) -> int:
    try:
        found = files.show()
    except OSError as error:
        raise PeiliError(f"{error.filename}: {error.strerror}") from error
    if arguments.json:
        sys.stdout.write(json.dumps({"registries": [each.json() for each in found]}) + "\n")
    else:
        nothing = f"nothing is configured in {', '.join(map(str, files.roots))}: containerd asks each registry itself"
        sys.stdout.write("\n\n".join(map(str, found)) + "\n" if found else f"{nothing}\n")
    return 0


_ACTIONS: Mapping[str, Callable[[argparse.Namespace, HostsFiles], int]] = {
    "apply": _apply,
    "show": _show,
    "remove": _remove,
}
