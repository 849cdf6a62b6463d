"""Options that several commands have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from typing_extensions import override

from peili.adapters.standalone.load import DEFAULT_FILE
from peili.adapters.standalone.settings import CONFIG_VARIABLE

F = TypeVar("F", bound=Callable[..., Any])


class _File(click.Path):
    """A path. The code that reads a file reports errors, except for an empty path, which stands for a directory."""

    @override
    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return super().convert(_not_empty(self, value, param, ctx), param, ctx)


class _Text(click.types.StringParamType):
    """A string that is not empty, as the value of a shell's variable may be that is not set."""

    @override
    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return super().convert(_not_empty(self, value, param, ctx), param, ctx)


def _not_empty(kind: click.ParamType[Any], value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
    if value == "":
        kind.fail("it is empty", param, ctx)
    return value


FILE = _File(path_type=Path, readable=False)
"""The type of an option that is a file."""
TEXT = _Text()
"""The type of an option that must not be empty."""


def options(*many: Callable[[F], F]) -> Callable[[F], F]:
    """Return one decorator for several options."""

    def decorate(command: F) -> F:
        for option in reversed(many):
            command = option(command)
        return command

    return decorate


JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
CONFIGURATION = options(
    click.option(
        "--config",
        type=FILE,
        metavar="FILE",
        help=f"The configuration, a TOML file. By default ${CONFIG_VARIABLE}, else {DEFAULT_FILE} if it exists.",
    ),
    click.option(
        "--set", "assignments", multiple=True, metavar="SECTION.KEY=VALUE", help="Set one key. Can be repeated."
    ),
)
