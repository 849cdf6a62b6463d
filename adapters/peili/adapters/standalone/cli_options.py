"""Options that several commands have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from peili.adapters.standalone.load import DEFAULT_FILE
from peili.adapters.standalone.settings import CONFIG_VARIABLE

F = TypeVar("F", bound=Callable[..., Any])
FILE = click.Path(path_type=Path, readable=False)
"""The type of an option that is a file. It is only for completion: the code that reads a file reports errors."""


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
