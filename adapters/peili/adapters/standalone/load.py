"""Finds and reads the configuration of a command, and reports all its mistakes at once."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from peili.adapters.standalone import settings
from peili.adapters.standalone.config import Config
from peili.adapters.standalone.parsing import CHECKS, known_keys, parse_config, parse_plugin
from peili.adapters.standalone.settings import CONFIG_VARIABLE, Sections, Setting
from peili.mirror import ConfigError, Plugins

DEFAULT_FILE = Path("/etc/peili/peili.toml")
"""What is read without --config, if it exists."""


class ConfigMistakes(ConfigError):
    """Several options are wrong.

    Attributes:
        errors: An error for each of them.
    """

    def __init__(self, errors: Sequence[ConfigError]) -> None:
        super().__init__(errors[0].key, errors[0].expected, source=errors[0].source)
        self.errors = tuple(errors)


def load(config: Path | None, assignments: Sequence[str]) -> Config:
    """Read and check the configuration, and say on stderr which file it is from, if it was not named.

    Args:
        config: The value of ``--config``.
        assignments: The values of ``--set``.

    Raises:
        ConfigError: Something is wrong; ConfigMistakes if there are several mistakes.
    """
    file = config or find_file()
    if file is not None and config is None:
        sys.stderr.write(f"peili: the configuration is {file}\n")
    sections = read(file, assignments)
    with all_mistakes(sections):
        return parse_config(sections, file)


def find_file() -> Path | None:
    """Return the file to read without ``--config``; None if there is none."""
    if (name := os.environ.get(CONFIG_VARIABLE)) is not None:
        return Path(name) if name else None
    try:
        return DEFAULT_FILE if DEFAULT_FILE.exists() else None
    except OSError:  # no access to its directory; to read the file will fail, too, and the error says so
        return DEFAULT_FILE


def read(
    file: Path | None, assignments: Sequence[str], log_format: str | None = None, log_level: str | None = None
) -> Sections:
    """Collect the configuration from a file, the environment and the options. Raises ConfigError."""
    found = [] if file is None else [*settings.from_file(file)]
    found += settings.from_environment(os.environ, known_keys())
    found += settings.from_flags(assignments)
    for key, text in (("format", log_format), ("level", log_level)):
        if text is not None:
            found.append(settings.Assignment(("log", key), Setting(text, f"--log-{key}", text)))
    return settings.merge(found)


@contextmanager
def all_mistakes(sections: Sections, plugins: Plugins | None = None) -> Generator[None]:
    """Raise ConfigMistakes instead of the first ConfigError if `sections` has several mistakes.

    Args:
        sections: The configuration that is used in the block.
        plugins: As for `find_mistakes`.
    """
    try:
        yield
    except ConfigError as error:
        mistakes = find_mistakes(sections, plugins)
        if len(mistakes) < 2:
            raise
        raise ConfigMistakes(mistakes) from error


def find_mistakes(sections: Sections, plugins: Plugins | None = None) -> list[ConfigError]:
    """Return all mistakes in `sections`.

    Args:
        sections: What `parse_config` refuses, or what one of the plug-ins does.
        plugins: Constructs the plug-ins, which then report the first mistake of each.
    """
    mistakes: list[ConfigError] = []
    remaining = {name: dict(settings) for name, settings in sections.items()}
    for check in CHECKS:
        while (mistake := _first_mistake(check, remaining)) is not None:
            mistakes.append(mistake)
            if not _remove(mistake.key, remaining):  # without the wrong setting, the check finds the next mistake
                break
    of_plugins = (_first_mistake(check, remaining) for check in _plugin_checks(plugins))
    return [*mistakes, *(each for each in of_plugins if each is not None)]


def _first_mistake(check: Callable[[Sections], object], sections: Sections) -> ConfigError | None:
    try:
        check(sections)
    except ConfigError as error:
        return error
    return None


def _remove(key: str, sections: dict[str, dict[str, Setting]]) -> bool:
    """Remove the setting ``SECTION.KEY``, or the section ``SECTION``. Returns whether it was there."""
    name, _, rest = key.partition(".")
    if not rest:
        return sections.pop(name, None) is not None
    return sections.get(name, {}).pop(re.split(r"[.\[]", rest)[0], None) is not None


def _plugin_checks(plugins: Plugins | None) -> Iterator[Callable[[Sections], object]]:
    if plugins is not None:
        yield lambda sections: parse_plugin("store", sections).build(plugins.store)
        yield lambda sections: parse_plugin("router", sections).build(plugins.router)
        yield lambda sections: parse_plugin("resolver", sections).build(plugins.resolver)
