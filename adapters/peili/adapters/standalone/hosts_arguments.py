"""What `peili hosts` is told on the command line. Needs no extra, so that `peili --help` does not either."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from peili.adapters.standalone.config.config import Config
from peili.mirror import ConfigError, PeiliError

FORMATS = ("containerd", "k3s", "talos")

_TEXTS = {
    "apply": "put peili in front of what containerd asks now; run again after changes",
    "show": "say what is in force, and what containerd will do with it",
    "remove": "take peili out again; what was there before is back, byte for byte",
}
_EPILOG = "The mirror's URL and what may be asked of it come from the same configuration as for `peili serve`."


def describe(
    command: argparse.ArgumentParser, configuration: Callable[[argparse.ArgumentParser], None], run: Callable[..., int]
) -> None:
    """Describe the actions; `configuration` adds the options that say which configuration, `run` runs the command."""
    command.description = "Change the files that say whom containerd asks for an image."
    actions = command.add_subparsers(title="actions", metavar="ACTION", dest="action", required=True)
    for name, text in _TEXTS.items():
        action = actions.add_parser(name, help=text, description=f"{text.capitalize()}.", epilog=_EPILOG)
        configuration(action)
        _describe_files(action)
        if name == "show":
            action.add_argument("--json", action="store_true", help="as one JSON object")
        else:
            action.add_argument("--dry-run", action="store_true", help="change nothing, show the changes as a diff")
        action.set_defaults(run=run, log_format=None, log_level=None)


def _describe_files(action: argparse.ArgumentParser) -> None:
    action.add_argument(
        "--format",
        choices=FORMATS,
        default=FORMATS[0],
        help="containerd: hosts.toml files; k3s: registries.yaml of k3s and RKE2; talos: reads a machine configuration"
        " and prints a patch of it (default: containerd)",
    )
    action.add_argument(
        "--file",
        type=Path,
        metavar="FILE",
        help="k3s: the file (default: those in /etc/rancher/k3s and rke2); talos: what to read (default: stdin)",
    )
    action.add_argument(
        "--config-path",
        action="append",
        metavar="DIR",
        help="a folder of containerd's config_path setting; repeatable, in its order (default: /etc/containerd/certs.d,"
        " with containerd 2 /etc/docker/certs.d after it)",
    )
    action.add_argument(
        "--registry",
        action="append",
        metavar="HOST",
        help="only for this one, or _default (k3s and Talos: '*') for those that nothing else is said of; repeatable"
        " (default for apply: hosts.registries, else mirror.registries, else all; for remove: all)",
    )
    action.add_argument("--mirror", metavar="URL", help="where containerd reaches peili, if not by local.listen")
    action.add_argument(
        "--containerd-version", metavar="VERSION", help="by default that of the one that runs, or is installed"
    )


_FLAGS = {
    "config_path": "--config-path",
    "file": "--file",
    "mirror": "--mirror",
    "registries": "--registry",
    "version": "--containerd-version",
}
"""The flags by what the adapters call what they give."""


def run(arguments: argparse.Namespace, config: Config) -> int:
    """Run what was described. Raises ConfigError; PeiliError where the extra is missing."""
    _check(arguments)
    try:
        return _run(arguments, config)
    except ConfigError as error:
        flag = _FLAGS.get(error.key)
        if flag is None or getattr(arguments, flag.removeprefix("--").replace("-", "_")) is None:
            raise
        raise ConfigError(flag, error.expected) from error


def _run(arguments: argparse.Namespace, config: Config) -> int:
    try:
        from peili.adapters.standalone import hosts  # noqa: PLC0415 - needs the extra `command`

        return hosts.run(arguments, config) if arguments.format == FORMATS[0] else hosts.run_other(arguments, config)
    except ImportError as error:
        raise PeiliError(str(error)) from error


def _check(arguments: argparse.Namespace) -> None:
    """Refuse what means nothing for the format."""
    other = arguments.format != FORMATS[0]
    for flag, value in (
        ("--config-path", arguments.config_path),
        ("--containerd-version", arguments.containerd_version),
    ):
        if other and value is not None:
            raise ConfigError(flag, f"only with --format {FORMATS[0]}")
    if not other and arguments.file is not None:
        raise ConfigError("--file", f"only with --format {' or '.join(FORMATS[1:])}; hosts.toml goes by --config-path")
