"""The command line: what there is to say to it, and how it ends: 0 done, 1 failed, 2 wrong usage or configuration."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from peili.adapters.standalone import about, hosts_arguments, serve
from peili.adapters.standalone.config import settings
from peili.adapters.standalone.config.config import Config
from peili.mirror import ConfigError, PeiliError, Plugins

_EPILOG = """\
Every key may also be an environment variable, PEILI_SECTION__KEY=VALUE (PEILI_ROUTER__KIND=static).
Flags win over the environment, the environment over the file. A VALUE is read as TOML where it is TOML.
"""


def main(argv: Sequence[str] | None = None, *, plugins: Plugins | None = None) -> int:
    """Run the command; its exit code. Errors that a user can mend are one line on stderr.

    A frozen app, whose plug-ins have no entry points, gives it `plugins` that it has registered them with.
    """
    try:
        arguments = _parser().parse_args(argv, argparse.Namespace(plugins=plugins or Plugins()))
        code: int = arguments.run(arguments)
        sys.stdout.flush()
    except ConfigError as error:
        return _failed(error, 2)
    except PeiliError as error:
        return _failed(error, 1)
    except KeyboardInterrupt:
        return 130  # as shells count it: 128 and SIGINT
    except BrokenPipeError:  # `peili … | head`: nobody is left to tell; nor must Python try it once more as it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # 128 and SIGPIPE
    return code


def _failed(error: PeiliError, code: int) -> int:
    sys.stderr.write(f"peili: {error}\n")
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="peili", description="A peer-to-peer mirror for container images.")
    parser.add_argument("--version", action="version", version=f"peili {about.version('peili')}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _describe_serve(commands.add_parser("serve", help="run the mirror"))
    _describe_doctor(commands.add_parser("doctor", help="say why containerd would not use the mirror"))
    hosts = commands.add_parser("hosts", help="put peili in front of containerd's registries, or take it out again")
    hosts_arguments.describe(hosts, _describe_configuration, _hosts)
    for name, run, text in (
        ("plugins", _plugins, "list the stores, routers and resolvers there are"),
        ("version", _version, "tell the versions of peili and of what it runs on"),
    ):
        command = commands.add_parser(name, help=text, description=f"{text.capitalize()}.")
        command.add_argument("--json", action="store_true", help="as one JSON object")
        command.set_defaults(run=run)
    text = "show it at work: three mirrors on loopback, a real client, every digest checked"
    demo = commands.add_parser("demo", help=text, description=f"{text.capitalize()}.")
    demo.add_argument("--corrupt", action="store_true", help="flip a byte at the source: what happens when a peer lies")
    demo.set_defaults(run=_demo)
    return parser


def _describe_doctor(command: argparse.ArgumentParser) -> None:
    command.description = (
        "Look at containerd's configuration, at hosts.toml and at the peili that runs; say what keeps containerd from\n"
        "using the mirror and how to mend it, and prove the way by a request. Changes nothing.\n"
        "Exit code 1 if something is wrong. Give it the configuration that `peili serve` has."
    )
    command.epilog = _EPILOG
    command.formatter_class = argparse.RawDescriptionHelpFormatter
    _describe_configuration(command)
    command.add_argument(
        "--containerd-config", type=Path, metavar="FILE", help="containerd's; by default the one that it runs with"
    )
    command.add_argument("--json", action="store_true", help="as one JSON object")
    command.set_defaults(run=_doctor, log_format=None, log_level=None)


def _describe_serve(command: argparse.ArgumentParser) -> None:
    command.description = "Run the mirror until SIGTERM or SIGINT."
    command.epilog = _EPILOG
    command.formatter_class = argparse.RawDescriptionHelpFormatter
    _describe_configuration(command)
    command.add_argument("--log-format", metavar="FORMAT", help="text or json")
    command.add_argument("--log-level", metavar="LEVEL", help="debug, info, warning or error")
    command.add_argument("--check", action="store_true", help="only check the configuration")
    command.set_defaults(run=_serve)


def _describe_configuration(command: argparse.ArgumentParser) -> None:
    command.add_argument("--config", type=Path, metavar="FILE", help="TOML file; without one, defaults")
    command.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="one key; repeatable")


def configuration(arguments: argparse.Namespace, environ: Mapping[str, str]) -> Config:
    """What file, environment and flags say together. Raises ConfigError."""
    assignments = [] if arguments.config is None else [*settings.from_file(arguments.config)]
    assignments += settings.from_environment(environ)
    assignments += settings.from_flags(arguments.set)
    for key, text in (("format", arguments.log_format), ("level", arguments.log_level)):
        if text is not None:
            assignments.append(settings.Assignment(("log", key), settings.Setting(text, f"--log-{key}", text)))
    return Config.load(settings.merged(assignments))


def _serve(arguments: argparse.Namespace) -> int:
    config = configuration(arguments, os.environ)
    if arguments.check:
        serve.build(config, arguments.plugins)
        sys.stdout.write("the configuration is right\n")
    else:
        serve.run(config, arguments.plugins)
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    try:
        from peili.adapters.standalone import examine  # noqa: PLC0415 - needs the extra `command`
    except ImportError as error:
        raise PeiliError(f"{error}: `peili doctor` needs what pip install 'peili[command]' brings") from error
    patient = examine.patient(configuration(arguments, os.environ), arguments.containerd_config)
    return examine.run(patient, sys.stdout.write, as_json=arguments.json)


def _hosts(arguments: argparse.Namespace) -> int:
    return hosts_arguments.run(arguments, configuration(arguments, os.environ))


def _plugins(arguments: argparse.Namespace) -> int:
    sys.stdout.write(about.plugins(arguments.plugins, as_json=arguments.json) + "\n")
    return 0


def _version(arguments: argparse.Namespace) -> int:
    sys.stdout.write(about.versions(as_json=arguments.json) + "\n")
    return 0


def _demo(arguments: argparse.Namespace) -> int:
    from peili.adapters import demo  # noqa: PLC0415 - only this one needs the extra `demo`

    return demo.run(corrupt=arguments.corrupt)
