"""docs/configuration.md is what the code says, and has every key that the code knows."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from peili.adapters.standalone.parsing import known_keys
from peili.mirror import RESOLVERS, ROUTERS, STORES, ConfigError, Limits, Plugins

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/configuration.md").read_text(encoding="utf-8")
GROUPS = {"store": STORES, "router": ROUTERS, "resolver": RESOLVERS}
PLUGINS = [(section, kind) for section, group in GROUPS.items() for kind in Plugins().names(group)]
UNKNOWN = "no-such-key"


def table(title: str) -> dict[str, list[str]]:
    """Return the rows below a heading, by the key."""
    part = PAGE.partition(f"\n## `{title}`\n")[2].partition("\n## ")[0]
    rows = [re.split(r"(?<!\\) \| ", line.strip("| ")) for line in part.splitlines() if line.startswith("| `")]
    return {row[0].strip("`"): row[1:] for row in rows}


def test_the_page_is_what_make_docs_writes() -> None:
    command = [sys.executable, "-m", "scripts.configuration_page", "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("section", known_keys())
def test_every_key_of_a_section_has_a_default_a_unit_and_an_example(section: str) -> None:
    rows = table(f"[{section}]")
    assert list(rows) == list(known_keys()[section])
    for key, cells in rows.items():
        assert len(cells) == 4
        assert all(cell not in {"", "``"} for cell in cells), key


def test_the_defaults_of_limits_are_on_the_page() -> None:
    rows = table("[limits]")
    assert rows["lookup_timeout"][:2] == ["`1.0`", "s"]
    assert rows["manifest_size"][:2] == ["4 MiB", "bytes"]
    assert rows["min_rate"][:2] == ["64 KiB", "bytes/s"]
    assert len(rows) == len(fields(Limits))


@pytest.mark.parametrize(("section", "kind"), PLUGINS)
def test_every_key_of_a_built_in_plug_in_is_on_the_page(section: str, kind: str) -> None:
    with pytest.raises(ConfigError) as caught:
        getattr(Plugins(), section)(kind, {UNKNOWN: 1})
    keys = str(caught.value).rpartition("there are: ")[2] if "there are: " in str(caught.value) else ""
    assert ", ".join(table(f'[{section}] kind = "{kind}"')) == keys


def test_required_keys_and_seconds_are_named() -> None:
    assert table('[router] kind = "file"')["path"][0] == "required"
    assert table('[router] kind = "file"')["interval"][:2] == ["`2.0`", "s"]
    assert table("[watchdog]")["timeout"][:2] == ["`30.0`", "s"]
