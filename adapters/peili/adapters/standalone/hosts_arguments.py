"""What `peili hosts` is told on the command line. Needs no extra, so that `peili --help` does not either."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from peili.adapters.standalone.config import Config
from peili.mirror import PeiliError

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
    command.description = "Change containerd's hosts.toml files, which say whom it asks for an image."
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
        help="only for this one, or _default for those without a folder of their own; repeatable (default for"
        " apply: hosts.registries, else mirror.registries, else all; for remove: all)",
    )
    action.add_argument("--mirror", metavar="URL", help="where containerd reaches peili, if not by local.listen")
    action.add_argument(
        "--containerd-version", metavar="VERSION", help="by default that of the one that runs, or is installed"
    )


def run(arguments: argparse.Namespace, config: Config) -> int:
    """Run what was described. Raises PeiliError where the extra is missing."""
    try:
        from peili.adapters.standalone import hosts  # noqa: PLC0415 - needs the extra `command`
    except ImportError as error:
        raise PeiliError(str(error)) from error
    return hosts.run(arguments, config)
