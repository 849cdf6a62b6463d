"""Writes docs/api.md from the docstrings of everything public; griffe reads the sources. `make docs` runs it.

    python -m scripts.api_page [--check]

With --check, nothing is written. The exit code is 1 if the page is out of date.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Collection, Iterable, Iterator
from typing import Any

from griffe import DocstringSectionKind as Section
from griffe import GriffeLoader
from scripts.generated import ROOT, write_or_check

PAGE = ROOT / "docs" / "api.md"
INTRODUCTION = """\
# API

<!-- `make docs` writes this page from the docstrings. Edit those. -->

This page lists everything that is public: the library, its helpers for tests, and the built-in stores, routers and
adapters. All other names may change at any time. Everything is typed (`py.typed`)."""
PUBLIC: dict[str, dict[str, str]] = {
    "peili.mirror": {
        "The mirror": "Mirror serve Serving Address http_protocol Auth loopback_only clients_in Selection "
        "check_registries PullRights Limits Watchdog",
        "TLS": "PeerTLS PeerKeys PeerCertificates TLSContexts peer_identity LocalCertificate check_private",
        "Values": "Digest Reference Key parse_key is_registry looks_like_registry Descriptor OCTET_STREAM MAX_MANIFEST "
        "is_manifest "
        "detect_media_type Peer AddressKinds base_url is_identity IDENTITY_HEADER Holder UnreachablePeer",
        "Plug-ins": "Plugin Context Plugins STORES ROUTERS RESOLVERS Options Backoff Broadcast Tasks is_cancelled "
        "running_already",
        "Stores": "Store StoreEvent Have Gone Synced Content FileContent GrowingFileContent open_regular open_below "
        "open_in_thread Inventory",
        "Routers": "Router Want FailureReason Feed Wait Upstream Lease LeaseEnd MembershipRouter PushRouter PeerClient",
        "Resolvers": "Resolver Resolution Listed Requester ResolverLoader",
        "Registries": "ApiRoot RootFinder default_roots",
        "Metrics": "Collector Family Distribution",
        "Errors": "PeiliError NotFound Unavailable StoreUnavailable RouterUnavailable PeerUnavailable Aborted "
        "ConfigError PluginNotFound ListenError AuthorizationRequired",
    },
    "peili.mirror.testing": {
        "Conformance kits": "check_store check_content check_router check_membership_router check_resolver "
        "check_options ConformanceError",
        "What the kits check": "StoreSubject StoreFactory ContentSubject ContentFactory Arrival RouterSubject "
        "RouterFactory MembershipSubject MembershipFactory ResolverSubject ResolverFactory",
        "Plug-ins in a test": "entered context_for watching Watched neighbour Neighbour",
        "Images": "Image Manifest host_platform make_layout pack_tar pull",
    },
    "peili.stores.containerd": {},
    "peili.stores.oci_layout": {},
    "peili.stores.memory": {"": "MemoryStore"},
    "peili.routers.static": {"": "StaticRouter"},
    "peili.routers.dns": {},
    "peili.routers.file": {},
    "peili.routers.kubernetes": {},
    "peili.routers.mdns": {},
    "peili.routers.talos": {},
    "peili.routers.memory": {"": "MemoryRouter MemoryNetwork"},
    "peili.adapters.containerd": {},
    "peili.adapters.k3s": {},
    "peili.adapters.talos": {},
}
"""The public modules, and the order of their names by subject. Without names, it is the order of ``__all__``."""


def page() -> str:
    """The whole page. Raises LookupError if a public name is not in `PUBLIC` or has no docstring."""
    loader = GriffeLoader(
        search_paths=[ROOT / root for root in ("mirror", "stores", "routers", "adapters")],
        docstring_parser="google",
        docstring_options={"returns_multiple_items": False},  # a result is one paragraph, not a list of named values
    )
    for package in dict.fromkeys(".".join(path.split(".")[:2]) for path in PUBLIC):
        loader.load(package)
    loader.resolve_aliases()
    modules: dict[str, Any] = {path: loader.modules_collection[path] for path in PUBLIC}
    subjects = {path: subjects_of(module) for path, module in modules.items()}
    items = {
        (path, name): public_object(modules[path], name)
        for path, names in subjects.items()
        for name in " ".join(names.values()).split()
    }
    public = {found.path for found in items.values()}
    blocks = [INTRODUCTION]
    for path, module in modules.items():
        blocks += [f"## `{path}`", *sections(module)]
        for subject, names in subjects[path].items():
            blocks += [f"### {subject}"] if subject else []
            for name in names.split():
                blocks += [f"#### `{name}`", *item(items[path, name], name, public)]
    return "\n\n".join(blocks) + "\n"


def subjects_of(module: Any) -> dict[str, str]:
    """The names of a module by subject. Raises LookupError if ``__all__`` has other names."""
    exports = [str(name) for name in module.exports or ()]
    subjects = PUBLIC[module.path] or {"": " ".join(exports)}
    if exports and (difference := set(exports) ^ set(" ".join(subjects.values()).split())):
        raise LookupError(f"PUBLIC in scripts/api_page.py and {module.path}.__all__ differ: {sorted(difference)}")
    return subjects


def public_object(module: Any, name: str) -> Any:
    found = module[name].final_target if module[name].is_alias else module[name]
    return found[name] if found.is_module else found  # `peili.mirror.serve` is a module, and the function in it


def item(found: Any, name: str, public: Collection[str]) -> Iterator[str]:
    """The blocks of a class, a function or a constant, and those of a class's public methods and properties."""
    lines = heading(found).replace(found.name, name, 1)  # some are exported under another name
    yield f"```python\n{lines}\n```"
    yield from sections(found)
    for method in methods(found, public) if found.is_class else ():
        yield from item(method, method.name, public)


def methods(found: Any, public: Collection[str]) -> Iterable[Any]:
    """The public methods and properties of a class, with those that it inherits from classes that are not `public`.

    An override without a docstring is left out, because its base describes it. So is a special method without one.
    """
    bases = found.mro()
    shown: dict[str, Any] = {}
    for each in (found, *(base for base in bases if base.path not in public)):
        for name, member in each.members.items():
            is_method = member.is_function or member.has_labels("property")
            is_optional = name.startswith("_") or any(name in base.members for base in bases)
            is_private = name == "__init__" or (name.startswith("_") and not name.endswith("__"))
            if is_method and not is_private and (member.docstring or not is_optional):
                shown.setdefault(name, member)
    return shown.values()


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
    sys.exit(write_or_check(PAGE, page, __doc__))
