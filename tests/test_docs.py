"""What the documentation names exists: files, modules, names in them, links and targets of make."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [*ROOT.glob("*.md"), *(page for page in ROOT.glob("docs/*.md") if page.name != "api.md")]
BASES = (ROOT, ROOT / "mirror/peili/mirror", ROOT / "tests")
TARGETS = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def spans(page: Path) -> Iterator[str]:
    """The code in its sentences: what stands between backticks."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    yield from re.findall(r"`([^`\n]+)`", text)


@pages
def test_links_lead_to_files(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


@pages
def test_paths_in_the_tree_exist(page: Path) -> None:
    for path in spans(page):
        if re.fullmatch(r"[a-z_]+(/[\w.]+)+/?|[a-z_]+/", path):
            assert any((base / path).exists() for base in BASES), path


@pages
def test_dotted_names_can_be_imported(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for name in re.findall(r"\bpeili\.(?:mirror|routers|stores|adapters)(?:\.\w+)*", text):
        assert is_importable(name), name


def is_importable(name: str) -> bool:
    parts = name.split(".")
    for length in range(len(parts), 1, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for attribute in parts[length:]:
            if not hasattr(found, attribute):
                return False
            found = getattr(found, attribute)
        return True
    return False


@pages
def test_targets_of_make_exist(page: Path) -> None:
    for target in re.findall(r"\bmake (\w+)(?=[`\s])(?! \w)", "\n".join([*spans(page)])):
        assert target in TARGETS, target


def test_the_tree_in_contributing_is_the_tree() -> None:
    [tree] = re.findall(
        r"## Folders\n\n```\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.DOTALL
    )
    top = [line.split()[0] for line in tree.splitlines() if not line.startswith(" ")]
    assert all((ROOT / folder).is_dir() for folder in top)
    inside = {line.split()[0].rstrip("/") for line in tree.splitlines() if line.startswith("  ")} - {"mirror.py"}
    framework = ROOT / "mirror/peili/mirror"
    folders = {each.name for each in framework.iterdir() if each.is_dir() and not each.name.startswith("_")}
    assert inside == folders
