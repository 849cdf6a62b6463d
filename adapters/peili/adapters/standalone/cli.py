"""The command line of `peili`; cli_hosts.py has `peili hosts`.

The exit code is 0 for done, 1 for failed, and 2 for wrong usage or a wrong configuration.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem, shell_complete

from peili.adapters.standalone import about, load, serve
from peili.adapters.standalone.cli_hosts import hosts_commands
from peili.adapters.standalone.cli_options import CONFIGURATION, FILE, JSON, TEXT
from peili.adapters.standalone.config import FORMATS, LEVELS
from peili.adapters.standalone.load import ConfigMistakes
from peili.adapters.standalone.parsing import parse_config
from peili.adapters.standalone.streams import complain, exit_code, prepare_streams
from peili.mirror import ConfigError, Peer, PeiliError, Plugins
from peili.mirror.tls.key_file import create_key_file, new_key

if TYPE_CHECKING:
    from peili.adapters.standalone.operations import RunningPeili

_COMPLETE = "_PEILI_COMPLETE"
"""A shell sets this variable to request completions; see "Shell Completion" in click's documentation."""

_PRECEDENCE = """\
Every key can also be an environment variable, PEILI_SECTION__KEY=VALUE (for example PEILI_ROUTER__KIND=static). Options
override the environment, and the environment overrides the file. A VALUE is parsed as TOML; if it is not valid TOML, it
is a string.
"""


def main(argv: Sequence[str] | None = None, *, plugins: Plugins | None = None) -> int:
    """Run the command. Errors that a user can fix are one line on stderr.

    Args:
        argv: The arguments; by default those of the process.
        plugins: Where plug-ins are looked up. A frozen app, whose plug-ins have no entry points, registers them here.

    Returns:
        The exit code.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    prepare_streams()
    try:
        if instruction := os.environ.get(_COMPLETE):
            return shell_complete(peili, {}, "peili", _COMPLETE, instruction)
        return _run(arguments, plugins or Plugins())
    except ConfigError as error:
        errors = error.errors if isinstance(error, ConfigMistakes) else (error,)
        for each in errors:
            complain(each)
        return 2
    except PeiliError as error:
        complain(error)
        return 1
    except KeyboardInterrupt:
        return 130  # what shells report: 128 + SIGINT
    except OSError as error:
        return exit_code(error)


def _run(arguments: list[str], plugins: Plugins) -> int:
    """Parse and run. This replaces click's own `main`, which has other exit codes for signals and broken pipes."""
    try:
        with peili.make_context("peili", arguments, obj=plugins) as context:
            code: int = peili.invoke(context)
    except click.exceptions.Exit as end:  # --help and --version
        code = end.exit_code
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    sys.stdout.flush()
    return code


def _suggest(values: Sequence[str]) -> Callable[[click.Context, click.Parameter, str], list[CompletionItem]]:
    """Return the completion of an option with `values`. `parse_config` checks the value, as in a file."""
    return lambda context, parameter, typed: [CompletionItem(value) for value in values if value.startswith(typed)]


@click.group(no_args_is_help=False, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(about.version("peili"), message="peili %(version)s")
def peili() -> None:
    """A peer-to-peer mirror for container images."""


@peili.command("serve", epilog=_PRECEDENCE)
@CONFIGURATION
@click.option("--log-format", metavar="FORMAT", shell_complete=_suggest(FORMATS), help=f"One of {', '.join(FORMATS)}.")
@click.option("--log-level", metavar="LEVEL", shell_complete=_suggest(LEVELS), help=f"One of {', '.join(LEVELS)}.")
@click.option("--check", is_flag=True, help="Check the configuration and exit.")
@click.pass_obj
def serve_command(
    plugins: Plugins,
    *,
    config: Path | None,
    assignments: Sequence[str],
    log_format: str | None,
    log_level: str | None,
    check: bool,
) -> int:
    """Run the mirror until SIGTERM or SIGINT."""
    file = config or load.find_file()
    sections = load.read(file, assignments, log_format, log_level)
    with load.all_mistakes(sections, plugins):
        loaded = parse_config(sections, file)
        if check:
            serve.build(loaded, plugins)
            loaded.local.build_ssl()
            is_found = config is None and file is not None
            click.echo(f"the configuration is valid: {file}" if is_found else "the configuration is valid")
        else:
            serve.run(loaded, plugins)
    return 0


def _checked_url(_context: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    """Return the value of `--url` without a slash at its end. Raises BadParameter if it is not a base URL."""
    try:
        return None if value is None else Peer("peili", (value,)).urls[0]
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


_URL = click.option(
    "--url",
    metavar="URL",
    callback=_checked_url,
    help="The address of the running peili. By default, from ops.listen or local.listen.",
)


@peili.command("status", epilog=_PRECEDENCE)
@CONFIGURATION
@_URL
@JSON
@click.option("--watch", is_flag=True, help="Show it again each second, until Ctrl-C.")
def status_command(
    *, config: Path | None, assignments: Sequence[str], url: str | None, as_json: bool, watch: bool
) -> int:
    """Show what the running peili of this host does.

    It shows its peers, what is in flight and from whom, how many bytes came from the store, from peers and from
    upstream, the share that was saved, the last pulls and the last problems.
    """
    from peili.adapters.standalone import status  # noqa: PLC0415 - httpx is slow to import

    return status.run(_running(config, assignments, url), sys.stdout.write, as_json=as_json, watch=watch)


@peili.command("find", epilog=_PRECEDENCE)
@click.argument("image")
@CONFIGURATION
@_URL
@click.option("--test", is_flag=True, help="Also fetch the first MiB of each part. Nothing is kept.")
@JSON
def find_command(
    image: str, *, config: Path | None, assignments: Sequence[str], url: str | None, test: bool, as_json: bool
) -> int:
    """Show who has which part of IMAGE, and what a pull would do.

    The running peili of this host asks its store and its peers. Nothing is pulled. The exit code is 1 if nobody knows
    the image, or if a part that somebody has can't be fetched.
    """
    from peili.adapters.standalone import questions  # noqa: PLC0415 - httpx is slow to import

    running = _running(config, assignments, url)
    return questions.find(running, image, sys.stdout.write, test=test, as_json=as_json)


@peili.command("ping", epilog=_PRECEDENCE)
@click.argument("peer", type=TEXT, required=False)
@CONFIGURATION
@_URL
@JSON
def ping_command(
    peer: str | None, *, config: Path | None, assignments: Sequence[str], url: str | None, as_json: bool
) -> int:
    """Ask each peer, or only PEER (an id or a URL), and measure how long it takes.

    The exit code is 1 if one of them does not answer properly.
    """
    from peili.adapters.standalone import questions  # noqa: PLC0415 - httpx is slow to import

    return questions.ping(_running(config, assignments, url), peer, sys.stdout.write, as_json=as_json)


def _running(config: Path | None, assignments: Sequence[str], url: str | None) -> RunningPeili:
    """Return the running peili: at `url`, or the one of the configuration."""
    from peili.adapters.standalone.operations import RunningPeili  # noqa: PLC0415 - httpx is slow to import

    return RunningPeili(url.rstrip("/")) if url is not None else RunningPeili.of(load.load(config, assignments))


@peili.command("doctor", epilog=_PRECEDENCE)
@CONFIGURATION
@click.option(
    "--containerd-config",
    type=FILE,
    metavar="FILE",
    help="containerd's configuration. By default, the file that the running containerd uses.",
)
@JSON
def doctor_command(
    *, config: Path | None, assignments: Sequence[str], containerd_config: Path | None, as_json: bool
) -> int:
    """Find out why containerd does not use the mirror.

    The doctor checks containerd's configuration, the hosts.toml files and the running peili. It says what is wrong and
    how to fix it, and sends a test request. It changes nothing. If something is wrong, the exit code is 1. Use the
    same configuration as for `peili serve`.
    """
    try:
        from peili.adapters.standalone import doctor  # noqa: PLC0415 - needs the extra `command`
    except ImportError as error:
        raise PeiliError(f"{error}: `peili doctor` needs pip install 'peili[command]'") from error
    target = doctor.doctor_target(load.load(config, assignments), containerd_config)
    return doctor.run(target, sys.stdout.write, as_json=as_json)


peili.add_command(hosts_commands)


@peili.group("keys", no_args_is_help=False)
def keys_group() -> None:
    """Make the key that all hosts of a cluster share."""


@keys_group.command("new")
@click.argument("file", type=FILE, required=False)
def keys_new_command(*, file: Path | None) -> int:
    """Write a new key into FILE, which must not exist, or without FILE to stdout.

    Copy the key to every host, and set peer.shared_key_file to its file. Keep it secret: a host that has it is a peer.
    """
    if file is None:
        click.echo(new_key())
    else:
        create_key_file(file)
        click.echo(f"created {file}")
    return 0


@peili.command("plugins")
@JSON
@click.pass_obj
def plugins_command(plugins: Plugins, *, as_json: bool) -> int:
    """List the available stores, routers and resolvers."""
    click.echo(about.plugins(plugins, as_json=as_json))
    return 0


@peili.command("version")
@JSON
def version_command(*, as_json: bool) -> int:
    """Print the versions of peili, of Python and of the libraries."""
    click.echo(about.versions(as_json=as_json))
    return 0


@peili.command("demo")
@click.option("--corrupt", is_flag=True, help="Flip a bit at the source, to see what happens to wrong content.")
def demo_command(*, corrupt: bool) -> int:
    """Run three mirrors on loopback and pull an image.

    A third-party client pulls the image through the mirrors, and the demo checks every digest.
    """
    from peili.adapters.demo import story  # noqa: PLC0415 - needs the extra `demo`

    return story.run(corrupt=corrupt)
