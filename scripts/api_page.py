"""Writes docs/api.md from the docstrings of everything public; griffe reads the sources. `make docs` runs it.

    python scripts/api_page.py [--check]

With --check, nothing is written. The exit code is 1 if the page is out of date.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from griffe import DocstringSectionKind as Section
from griffe import GriffeLoader

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "api.md"
INTRODUCTION = """\
# API

<!-- `make docs` writes this page from the docstrings. Edit those. -->

This page lists everything that is public. All other names may change at any time.
Everything is typed (`py.typed`)."""
PUBLIC: dict[str, dict[str, str]] = {
    "peili.mirror": {
        "The mirror": "Mirror serve Serving Address http_protocol Auth loopback_only Selection check_registries Limits "
        "Watchdog",
        "Values": "Digest Reference Key parse_key is_registry looks_like_registry Descriptor OCTET_STREAM is_manifest "
        "detect_media_type Peer base_url is_identity Holder",
        "Plug-ins": "Plugin Context Plugins STORES ROUTERS RESOLVERS Options Backoff Broadcast Tasks is_cancelled "
        "running_already",
        "Stores": "Store StoreEvent Have Gone Synced Content FileContent open_regular Inventory",
        "Routers": "Router Want FailureReason Feed Wait Upstream Lease LeaseEnd MembershipRouter PushRouter PeerClient",
        "Resolvers": "Resolver ResolverLoader",
        "Metrics": "Collector Family Distribution",
        "Errors": "PeiliError NotFound Unavailable StoreUnavailable RouterUnavailable PeerUnavailable Aborted "
        "ConfigError PluginNotFound ListenError",
    },
    "peili.mirror.testing": {
        "Conformance kits": "check_store check_content check_router check_membership_router check_resolver "
        "check_options ConformanceError",
        "What the kits check": "StoreSubject StoreFactory ContentSubject ContentFactory Arrival RouterSubject "
        "RouterFactory MembershipSubject MembershipFactory ResolverSubject ResolverFactory",
        "Plug-ins in a test": "entered context_for watching Watched neighbour Neighbour",
        "Images": "Image Manifest host_platform make_layout pack_tar pull",
    },
}
"""The public modules, and the order of their names by subject."""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing, compare")
    check: bool = parser.parse_args().check
    text = page()
    if not check:
        PAGE.write_text(text, encoding="utf-8")
    elif not PAGE.exists() or PAGE.read_text(encoding="utf-8") != text:
        print("docs/api.md does not match the docstrings; run: make docs", file=sys.stderr)
        return 1
    return 0


def page() -> str:
    """The whole page. Raises LookupError if a public name is not in `PUBLIC` or has no docstring."""
    loader = GriffeLoader(
        search_paths=[ROOT / "mirror"],
        docstring_parser="google",
        docstring_options={"returns_multiple_items": False},  # a result is one paragraph, not a list of named values
    )
    loader.load("peili.mirror")
    loader.resolve_aliases()
    blocks = [INTRODUCTION]
    for path, subjects in PUBLIC.items():
        module: Any = loader.modules_collection[path]
        blocks += [f"## `{path}`", *sections(module)]
        if difference := set(module.exports) ^ set(" ".join(subjects.values()).split()):
            raise LookupError(f"PUBLIC in {Path(__file__).name} and {path}.__all__ differ: {sorted(difference)}")
        for subject, names in subjects.items():
            blocks.append(f"### {subject}")
            for name in names.split():
                found = module[name]
                if found.is_module:  # `peili.mirror.serve` is a module, and the function in it
                    found = found[name]
                blocks += [f"#### `{name}`", *item(found, name)]
    return "\n\n".join(blocks) + "\n"


def item(found: Any, name: str) -> Iterator[str]:
    """The blocks of a class, a function or a constant, and those of a class's public methods and properties."""
    lines = heading(found).replace(found.name, name, 1)  # some are exported under another name
    yield f"```python\n{lines}\n```"
    yield from sections(found)
    for member in found.members.values() if found.is_class else ():
        is_method = member.is_function or member.has_labels("property")
        if is_method and is_shown(member, inherited=any(member.name in base.members for base in found.mro())):
            yield from item(member, member.name)


def is_shown(method: Any, *, inherited: bool) -> bool:
    """Special methods need a docstring to be shown, and so do overrides, which their base describes."""
    if method.name.startswith("_"):
        return method.name.endswith("__") and method.name != "__init__" and bool(method.docstring)
    return bool(method.docstring) or not inherited


def heading(found: Any) -> str:
    """The first lines of the source, without the docstring; of a class also its attributes and its constructor."""
    lines = found.source.splitlines()
    match ast.parse(found.source).body[0]:
        case ast.ClassDef(body=body):
            shown = lines[: body[0].lineno - 1]
            for each in body:
                if is_public_attribute(each):
                    shown += with_comments(each, lines)
                elif isinstance(each, ast.FunctionDef) and each.name == "__init__":
                    shown += lines[each.lineno - 1 : each.body[0].lineno - 1]
        case ast.FunctionDef(body=body) | ast.AsyncFunctionDef(body=body):
            shown = ["@property"] * found.is_attribute + lines[: body[0].lineno - 1]
        case _:
            shown = lines
    return re.sub(r"  # noqa.*|@override\n", "", "\n".join(shown)).removesuffix(":")


def is_public_attribute(statement: ast.stmt) -> bool:
    match statement:
        case ast.AnnAssign(target=ast.Name(id=name)) | ast.Assign(targets=[ast.Name(id=name)]):
            return not name.startswith("_")
        case _:
            return False


def with_comments(statement: ast.stmt, lines: list[str]) -> list[str]:
    """The lines of a statement, and the comments above it."""
    start = statement.lineno - 1
    while lines[start - 1].lstrip().startswith("#"):
        start -= 1
    return lines[start : statement.end_lineno]


def sections(found: Any) -> Iterator[str]:
    """The docstring as Markdown. Raises LookupError if there is none."""
    if not found.docstring:
        raise LookupError(f"{found.path} has no docstring")
    for section in found.docstring.parsed:
        value: Any = section.value
        match section.kind:
            case Section.text:
                yield value
            case Section.parameters | Section.attributes | Section.raises:
                title = {"parameters": "Args"}.get(section.kind.value, section.kind.value.capitalize())
                pairs = [(getattr(each, "name", each.annotation), each.description) for each in value]
                yield "\n".join([f"{title}:\n", *(f"- `{name}`: {text}".replace("\n", "\n  ") for name, text in pairs)])
            case Section.returns | Section.yields:
                (each,) = value
                name = f"{each.name}: " if each.name else ""  # a sentence that starts with a word and a colon
                yield f"{section.kind.value.capitalize()}: {name}{each.description}"
            case _:
                raise LookupError(f"{found.path} has a docstring section that is not rendered: {section.kind.value}")


if __name__ == "__main__":
    sys.exit(main())
