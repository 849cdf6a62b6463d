"""The documentation is a site without a broken link, and its page of the metrics is up to date."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from scripts import docs_site as site
from scripts import metrics_page


def test_every_page_is_built_and_no_link_is_broken(tmp_path: Path) -> None:
    assert site.build(tmp_path / "site") == []
    pages = {each.stem for each in (tmp_path / "site").glob("*.html")}
    assert pages == {each.stem for each in site.DOCS.glob("*.md")}
    for file in (tmp_path / "site").glob("*.html"):
        text = file.read_text(encoding="utf-8")
        for target in re.findall(r'(?:href|src)="([^"#]+)', text):
            if ":" in target:
                continue  # on the web
            assert (tmp_path / "site" / target).is_file(), f"{file.name}: {target}"
        assert "aria-current=page" in text


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[a](missing.md)", "page.md: missing.md does not exist"),
        ("[a](#nowhere)", "page.md: #nowhere: there is no such heading"),
        ("[a](page.md#also-not)", "page.md: page.md#also-not: there is no such heading"),
    ],
)
def test_a_broken_link_is_named(text: str, problem: str, tmp_path: Path) -> None:
    file = tmp_path / "page.md"
    file.write_text(f"# A page\n\n## Some `code`, and more\n\n{text}\n")
    page = site.Page(file)
    assert [*page.anchors] == ["a-page", "some-code-and-more"]
    assert problem in site.problems([page])


def test_a_page_that_is_not_in_the_menu_is_named(tmp_path: Path) -> None:
    file = tmp_path / "lost.md"
    file.write_text("# Lost\n")
    assert site.problems([site.Page(file)]) == ["lost.md: it is not in the menu of scripts/docs_site.py"]


def test_the_page_of_the_metrics_is_what_the_script_writes() -> None:
    written = metrics_page.FILE.read_text(encoding="utf-8")
    assert written == metrics_page.page(), "run: make docs"
