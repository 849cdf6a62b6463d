"""Makes a site of the documentation: `python -m scripts.docs_site [DIRECTORY]` writes HTML into build/site.

It needs no network. Every link is checked: a page, a heading or a file that does not exist is an error. Addresses on
the web are not fetched.
"""

from __future__ import annotations

import argparse
import html
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote

from markdown_it import MarkdownIt
from markdown_it.token import Token
from scripts.generated import ROOT

DOCS = ROOT / "docs"
PAGES = {
    "Start": ("index", "running", "containerd", "k3s", "talos", "clients", "embedding"),
    "Operate": ("configuration", "metrics", "troubleshooting", "security", "faq"),
    "Understand": ("architecture", "protocol", "cold-start", "benchmarks"),
    "Extend": ("plugins", "api"),
}
"""The pages of the menu. One that does not exist yet is left out; each page of docs/ must be in it."""
_STYLE = """
:root { color-scheme: light dark; --line: #8884; --faint: #8882; }
body { margin: 0 auto; max-width: 78rem; padding: 0 1rem; font: 16px/1.6 system-ui, sans-serif; display: grid;
  grid-template-columns: 13rem minmax(0, 1fr); gap: 2rem; }
nav { padding-top: 1rem; } nav ul { list-style: none; padding: 0; } nav h2 { font-size: .9rem; margin-bottom: 0; }
main { padding-bottom: 4rem; } pre { overflow-x: auto; padding: .75rem; background: var(--faint);
  border-radius: .4rem; }
code { font-size: .92em; } table { border-collapse: collapse; display: block; overflow-x: auto; }
th, td { border: 1px solid var(--line); padding: .3rem .6rem; text-align: left; vertical-align: top; }
a[aria-current] { font-weight: 700; text-decoration: none; color: inherit; }
@media (max-width: 50rem) { body { display: block; } }
"""


class Page:
    """One page.

    Attributes:
        name: Its name without an ending.
        title: Its first heading.
        anchors: The ids of its headings.
    """

    def __init__(self, path: Path) -> None:
        self.name = path.stem
        self.path = path
        self._markdown = MarkdownIt("commonmark").enable("table")
        self._tokens = self._markdown.parse(path.read_text(encoding="utf-8"))
        self.anchors: dict[str, None] = {}
        self.title = self.name
        for token, content in zip(self._tokens, self._tokens[1:], strict=False):
            if token.type == "heading_open":
                anchor = self._anchor(content.content)
                token.attrSet("id", anchor)
                if not self.anchors:
                    self.title = content.content.replace("`", "")
                self.anchors[anchor] = None

    def _anchor(self, heading: str) -> str:
        """Return the id of a heading, as GitHub makes it."""
        text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").lower()
        anchor = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
        number = next(count for count in range(1000) if (f"{anchor}-{count}" if count else anchor) not in self.anchors)
        return f"{anchor}-{number}" if number else anchor

    def links(self) -> list[Token]:
        """Return the tokens of all links and pictures."""
        inline = [child for token in self._tokens for child in token.children or ()]
        return [each for each in inline if each.type in {"link_open", "image"}]

    def body(self) -> str:
        """Return the page as HTML, without the frame around it."""
        return str(self._markdown.renderer.render(self._tokens, self._markdown.options, {}))


def _target(link: Token) -> str:
    return unquote(str(link.attrGet("src" if link.type == "image" else "href") or ""))


def problems(pages: Sequence[Page]) -> list[str]:
    """Return what is wrong with the links of `pages`, a line for each."""
    by_path = {page.path.resolve(): page for page in pages}
    found: list[str] = []
    for page in pages:
        for link in page.links():
            target = _target(link)
            if re.match(r"[a-z]+:", target):
                continue
            file, _, anchor = target.partition("#")
            path = (page.path.parent / file).resolve() if file else page.path.resolve()
            if not path.exists():
                found.append(f"{page.path.name}: {target} does not exist")
            elif anchor and path in by_path and anchor not in by_path[path].anchors:
                found.append(f"{page.path.name}: {target}: there is no such heading")
    menu = {name for names in PAGES.values() for name in names}
    found += [
        f"{page.path.name}: it is not in the menu of scripts/docs_site.py" for page in pages if page.name not in menu
    ]
    return found


def build(directory: Path) -> list[str]:
    """Write the site into `directory`, whose former content is removed. Return what is wrong."""
    pages = [Page(path) for path in sorted(DOCS.glob("*.md"))]
    found = problems(pages)
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    names = {page.path.resolve() for page in pages}
    for page in pages:
        for link in page.links():
            _rewrite(link, page, names, directory)
        text = _frame(page, {each.name: each for each in pages})
        (directory / f"{page.name}.html").write_text(text, encoding="utf-8")
    return found


def _rewrite(link: Token, page: Page, pages: set[Path], directory: Path) -> None:
    """Let a link to a page lead to its HTML, and copy another file of the project beside the pages.

    A link to a folder becomes text.
    """
    target = _target(link)
    file, hash_sign, anchor = target.partition("#")
    if re.match(r"[a-z]+:", target) or not file:
        return
    path = (page.path.parent / file).resolve()
    if path in pages:
        new = f"{path.stem}.html{hash_sign}{anchor}"
    elif path.is_file() and path.is_relative_to(ROOT):
        new = f"files/{path.relative_to(ROOT)}"
        (directory / new).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, directory / new)
    else:
        link.attrs.pop("href", None)
        return
    link.attrSet("src" if link.type == "image" else "href", new)


def _frame(page: Page, pages: dict[str, Page]) -> str:
    groups: list[str] = []
    for group, names in PAGES.items():
        entries = [
            f'<li><a href="{name}.html"{" aria-current=page" if name == page.name else ""}>'
            f"{html.escape(pages[name].title)}</a></li>"
            for name in names
            if name in pages
        ]
        groups.append(f"<h2>{group}</h2><ul>{''.join(entries)}</ul>")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(page.title)} - peili</title><style>{_STYLE}</style></head>"
        f'<body><nav aria-label="Pages">{"".join(groups)}</nav><main>{page.body()}</main></body></html>\n'
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("directory", nargs="?", type=Path, default=ROOT / "build" / "site")
    directory: Path = parser.parse_args().directory
    found = build(directory)
    sys.stderr.writelines(f"{each}\n" for each in found)
    print(f"the site is in {directory}; open {directory / 'index.html'}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
