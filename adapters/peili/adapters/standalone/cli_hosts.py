"""The commands `peili hosts apply`, `show` and `remove`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from peili.adapters.standalone import load
from peili.adapters.standalone.cli_options import CONFIGURATION, FILE, JSON, TEXT, options
from peili.mirror import ConfigError, PeiliError

_FORMATS = ("containerd", "k3s", "talos")
_NOT_GIVEN = (None, ())


def _directory(context: click.Context, parameter: click.Parameter, typed: str) -> list[CompletionItem]:
    """Let the shell complete the name of a directory."""
    return [CompletionItem(typed, type="dir")]


@click.group("hosts", no_args_is_help=False)
def hosts_commands() -> None:
    """Make containerd use peili for its registries, or stop it.

    The commands change hosts.toml files, or with --format the files of k3s, RKE2 or Talos.
    """


_EPILOG = "The URL and the capabilities of the mirror come from the same configuration as for `peili serve`."
_OPTIONS = options(
    CONFIGURATION,
    click.option(
        "--format",
        "file_format",
        type=click.Choice(_FORMATS),
        default=_FORMATS[0],
        show_default=True,
        help="containerd: hosts.toml files. k3s: registries.yaml of k3s and RKE2. talos: read a machine configuration "
        "and print a patch for it.",
    ),
    click.option(
        "--file",
        type=FILE,
        metavar="FILE",
        help="k3s: the file; by default those in /etc/rancher/k3s and /etc/rancher/rke2. talos: the file to read; by "
        "default stdin.",
    ),
    click.option(
        "--config-path",
        multiple=True,
        shell_complete=_directory,
        metavar="DIR",
        help="A directory in containerd's config_path setting. Can be repeated, in the order of the setting. By "
        "default /etc/containerd/certs.d, and for containerd 2 also /etc/docker/certs.d.",
    ),
    click.option(
        "--registry",
        multiple=True,
        metavar="HOST",
        help="Only this registry, or _default (k3s and Talos: '*') for all registries without their own entry. Can be "
        "repeated. By default, apply uses hosts.registries, else mirror.registries, else all; remove uses all.",
    ),
    click.option(
        "--mirror", type=TEXT, metavar="URL", help="The URL of peili for containerd. By default, from local.listen."
    ),
    click.option(
        "--containerd-version",
        type=TEXT,
        metavar="VERSION",
        help="By default, the version of the running containerd, else of the installed one.",
    ),
)
_DRY_RUN = click.option("--dry-run", is_flag=True, help="Show the changes as a diff and change nothing.")


@hosts_commands.command("apply", epilog=_EPILOG)
@_OPTIONS
@_DRY_RUN
def hosts_apply(**options: Any) -> int:
    """Put peili first in the configured registries.

    Run this again after you have changed the registries.
    """
    return _run("apply", **options)


@hosts_commands.command("show", epilog=_EPILOG)
@_OPTIONS
@JSON
def hosts_show(**options: Any) -> int:
    """Show which servers containerd asks for each registry."""
    return _run("show", **options)


@hosts_commands.command("remove", epilog=_EPILOG)
@_OPTIONS
@_DRY_RUN
def hosts_remove(**options: Any) -> int:
    """Remove peili again.

    What the files contained before is restored byte for byte.
    """
    return _run("remove", **options)


def _run(
    action: str,
    *,
    config: Path | None,
    assignments: Sequence[str],
    file_format: str,
    file: Path | None,
    config_path: Sequence[str],
    registry: Sequence[str],
    mirror: str | None,
    containerd_version: str | None,
    dry_run: bool = False,
    as_json: bool = False,
) -> int:
    """Run an action of `peili hosts`. Raises ConfigError; PeiliError if the extra is missing."""
    loaded = load.load(config, assignments)
    given = {
        "config_path": ("--config-path", config_path),
        "file": ("--file", file),
        "mirror": ("--mirror", mirror),
        "registries": ("--registry", registry),
        "version": ("--containerd-version", containerd_version),
    }
    _refuse_options_of_other_formats(file_format, given)
    try:
        from peili.adapters.standalone import hosts  # noqa: PLC0415 - needs the extra `command`

        return hosts.run(
            action,
            loaded,
            file_format=file_format,
            file=file,
            config_path=config_path,
            registries=registry,
            mirror=mirror,
            version=containerd_version,
            dry_run=dry_run,
            as_json=as_json,
        )
    except ImportError as error:
        raise PeiliError(str(error)) from error
    except ConfigError as error:  # An adapter names its parameter. Name the option that the value came from.
        option, value = given.get(error.key, ("", None))
        if value in _NOT_GIVEN:
            raise
        raise ConfigError(option, error.expected) from error


def _refuse_options_of_other_formats(file_format: str, given: Mapping[str, tuple[str, Any]]) -> None:
    if file_format == _FORMATS[0]:
        if given["file"][1] is not None:
            others = " or ".join(_FORMATS[1:])
            raise ConfigError("--file", f"only with --format {others}; for hosts.toml, use --config-path")
        return
    for option, value in (given["config_path"], given["version"]):
        if value not in _NOT_GIVEN:
            raise ConfigError(option, f"only with --format {_FORMATS[0]}")
