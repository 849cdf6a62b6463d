"""Reads and changes the text of a registries.yaml.

The format is documented by k3s and RKE2 as "Private Registry Configuration". ``mirrors`` maps a registry, or ``*`` for
all registries without an entry, to ``endpoint`` and ``rewrite``. ``configs`` holds credentials and TLS settings, which
peili never changes.

A changed text is parsed again, and the change is refused if its meaning is not exactly the intended one. A text that
k3s may read differently is refused too: k3s parses YAML 1.1, and this module parses YAML 1.2. tests/differential
compares them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from peili.adapters.files.editor import CannotEdit
from peili.adapters.files.urls import same_door
from peili.adapters.files.yaml_text import NotYaml, is_list, is_table, parse_one
from peili.adapters.k3s.marked_lines import MARK, insert_endpoint, remove_marked

WILDCARD = "*"
"""Stands for all registries without an entry."""
WILDCARD_DIRECTORY = "_default"
"""The directory that k3s creates for `WILDCARD`. As the name of an entry, it means the same."""

_DIFFERENT_MEANING = "the changed file would mean something else, because of an anchor, a tag or a block of text"
_LINE_ENDS = re.compile("[\x85\u2028\u2029]")
_DIRECTIVE = re.compile(r"^%", re.MULTILINE)
_BOOLEANS = {"y", "yes", "on", "true", "n", "no", "off", "false"}


@dataclass(frozen=True, slots=True)
class RegistryEntry:
    """The entry of one registry.

    Attributes:
        registry: Its name, or `WILDCARD`.
        endpoints: The URLs of its mirrors, in the order in which containerd asks them.
        rewrites: Whether repository names are rewritten for the endpoints.
    """

    registry: str
    endpoints: tuple[str, ...]
    rewrites: bool


def read_entries(text: str) -> tuple[RegistryEntry, ...]:
    """Return the entries in `text`, in order. Raises CannotEdit."""
    return tuple(
        RegistryEntry(registry, tuple(entry.get("endpoint") or ()), bool(entry.get("rewrite")))
        for registry, entry in _mirrors(_parse(text)).items()
    )


def hosts_with_settings(text: str) -> tuple[str, ...]:
    """Return the hosts that have credentials or TLS settings. Raises CannotEdit."""
    configs: Any = _parse(text).get("configs")
    return tuple(
        str(host)
        for host, settings in (configs if is_table(configs) else {}).items()
        if is_table(settings) and (settings.get("auth") or settings.get("tls"))
    )


def endpoints_of(text: str, registry: str) -> tuple[str, ...]:
    """Return the endpoints of `registry`. Raises CannotEdit."""
    return _endpoints(_parse(text), registry)


def chosen_registries(text: str, registries: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the entries to change.

    Args:
        text: The content of the file.
        registries: The registries; if it is empty, `WILDCARD` and each registry that has an entry.

    Raises:
        CannotEdit: The text cannot be read, or has two entries for `WILDCARD`.
    """
    existing = [entry.registry for entry in read_entries(without_mirror(text))]
    names = list(registries or [WILDCARD, *existing])
    if WILDCARD_DIRECTORY in existing and WILDCARD in names:
        if WILDCARD in existing:
            raise CannotEdit(
                f"it has both {WILDCARD!r} and {WILDCARD_DIRECTORY!r}, and k3s uses one of them at random; remove one"
            )
        names[names.index(WILDCARD)] = WILDCARD_DIRECTORY
    return tuple(dict.fromkeys(names))


def with_mirror(text: str, url: str, registries: Sequence[str]) -> str:
    """Return `text` with `url` as the first endpoint of each of `registries`.

    Other registries keep their endpoints, also those that peili added. An endpoint that is first already is not added
    again, even if a user added it.

    Raises:
        CannotEdit: The text cannot be changed safely.
    """
    if all(_is_first(endpoints_of(text, registry), url) for registry in registries):
        _parse(text)
        return text
    base, ours = _split(text)
    return _add_all(base, {**ours, **dict.fromkeys(registries, url)})


def without_mirror(text: str, registries: Sequence[str] = ()) -> str:
    """Return `text` without the endpoints that `with_mirror` added, whatever their URL.

    Args:
        text: The content of the file.
        registries: The registries to change; all if it is empty.

    Raises:
        CannotEdit: The text cannot be changed safely.
    """
    base, ours = _split(text)
    # `chosen_registries` may have replaced the one name with the other.
    selected = {*registries, WILDCARD_DIRECTORY} if WILDCARD in registries else {*registries}
    kept = {registry: url for registry, url in ours.items() if selected and registry not in selected}
    return text if kept == ours else _add_all(base, kept)


def _split(text: str) -> tuple[str, dict[str, str]]:
    """Return `text` without anything that peili added, and peili's URL by registry."""
    before = _parse(text)
    base, urls = remove_marked(text)
    if MARK in base:
        line = next(number for number, each in enumerate(base.splitlines(), 1) if MARK in each)
        raise CannotEdit(f"peili added line {line} of what remains, and somebody changed it: remove it by hand")
    if base == text:
        return text, {}
    after = _parse_result(base)
    _check_removal(before, after, urls)
    return base, {
        registry: next(each for each in entry["endpoint"] if each in urls)
        for registry, entry in _mirrors(before).items()
        if _endpoints(before, registry) != _endpoints(after, registry)
    }


def _add_all(base: str, urls: Mapping[str, str]) -> str:
    """Return `base`, which contains nothing of peili's, with a first endpoint for each registry in `urls`."""
    expected, new = _parse(base), base
    for registry, url in urls.items():
        if _is_first(_endpoints(expected, registry), url):
            continue
        mirrors: dict[str, Any] = expected.get("mirrors") or {}
        entry: dict[str, Any] = mirrors.get(registry) or {}
        expected["mirrors"], mirrors[registry] = mirrors, entry
        entry["endpoint"] = [url, *(entry.get("endpoint") or ())]
        if _endpoints(_parse_result(new), registry)[:1] != (url,):  # an alias may have added it already
            new = insert_endpoint(new, url, registry)
    if _parse_result(new) != expected:
        raise CannotEdit(_DIFFERENT_MEANING)
    return new


def _check_removal(before: dict[str, Any], after: dict[str, Any], ours: frozenset[str]) -> None:
    """Raise CannotEdit if anything is missing except one of `ours` per registry, and empty parents of it."""
    old, new = _mirrors(before), _mirrors(after)
    is_same = (
        all(after.get(key) == value for key, value in before.items() if key != "mirrors") and new.keys() <= old.keys()
    )
    for registry, entry in old.items():
        old_rest = {key: value for key, value in entry.items() if key != "endpoint"}
        new_rest = {key: value for key, value in new.get(registry, {}).items() if key != "endpoint"}
        endpoints, remaining = list(entry.get("endpoint") or ()), list(new.get(registry, {}).get("endpoint") or ())
        index = next((i for i, each in enumerate(endpoints) if each in ours), len(endpoints))
        without = endpoints[:index] + endpoints[index + 1 :]
        is_same = is_same and old_rest == new_rest and remaining in (endpoints, without)
    if not is_same:
        raise CannotEdit("without peili's lines it would mean something else; remove them by hand")


def _is_first(endpoints: Sequence[str], url: str) -> bool:
    return bool(endpoints) and same_door(endpoints[0], url)


def _mirrors(root: dict[str, Any]) -> dict[str, dict[str, Any]]:
    mirrors: dict[str, Any] = root.get("mirrors") or {}
    return {registry: entry or {} for registry, entry in mirrors.items()}


def _endpoints(root: dict[str, Any], registry: str) -> tuple[str, ...]:
    return tuple(_mirrors(root).get(registry, {}).get("endpoint") or ())


def _parse_result(text: str) -> dict[str, Any]:
    """Parse a text that peili has changed."""
    try:
        return _parse(text)
    except CannotEdit as error:
        raise CannotEdit(_DIFFERENT_MEANING) from error


def _parse(text: str) -> dict[str, Any]:
    """Return the root mapping. Raises CannotEdit if k3s may not read `text`, or read it differently."""
    try:
        root = parse_one(text)
    except NotYaml as error:
        raise CannotEdit(f"can't be read as YAML: {error}") from error
    if root is None:
        return {}
    if not is_table(root):
        raise CannotEdit("its root must be a mapping with mirrors and configs")
    if found := _LINE_ENDS.search(text):
        raise CannotEdit(f"it has the character U+{ord(found[0]):04X}, which ends a line for k3s")
    if _DIRECTIVE.search(text):
        raise CannotEdit("it has a line that starts with %, which k3s may not understand")
    if r"\/" in text:
        raise CannotEdit(r"it has \/, which k3s does not read; write a slash alone")
    _check_keys(root)
    _check_mirrors(root.get("mirrors"))
    for name in ("configs", "auths"):
        _check_tables(name, root.get(name))
    configs: dict[Any, Any] = root.get("configs") or {}
    for host, settings in configs.items():
        _check_config(f"configs.{host}", settings or {})
    return root


def _check_keys(value: Any) -> None:
    if is_table(value):
        if wrong := [key for key in value if not isinstance(key, (str, int, float))]:
            raise CannotEdit(f"a key must be text, not {wrong[0]!a}")
        for each in value.values():
            _check_keys(each)
    elif is_list(value):
        for each in value:
            _check_keys(each)


def _check_mirrors(mirrors: Any) -> None:
    if mirrors is not None and not is_table(mirrors):
        raise CannotEdit("mirrors: must be a mapping of registries")
    for registry, entry in (mirrors or {}).items():
        if not isinstance(registry, str):
            raise CannotEdit(f"mirrors: must have the names of registries as keys, not {registry!r}")
        if entry is not None and not is_table(entry):
            raise CannotEdit(f"mirrors.{registry}: must be a mapping with endpoint and rewrite")
        endpoints: Any = entry.get("endpoint") if entry else None
        if endpoints is not None and not (is_list(endpoints) and all(isinstance(each, str) for each in endpoints)):
            raise CannotEdit(f"mirrors.{registry}.endpoint: must be a list of URLs")
        _check_texts(f"mirrors.{registry}.rewrite", entry.get("rewrite") if entry else None)


def _check_config(path: str, config: dict[Any, Any]) -> None:
    for key in ("auth", "tls"):
        _check_texts(f"{path}.{key}", config.get(key))
    tls: dict[Any, Any] = config.get("tls") or {}
    skip_verify: Any = tls.get("insecure_skip_verify")
    if skip_verify is not None and str(skip_verify).lower() not in _BOOLEANS:
        raise CannotEdit(f"{path}.tls.insecure_skip_verify: must be true or false")


def _check_tables(path: str, value: Any) -> None:
    if value is not None and not is_table(value):
        raise CannotEdit(f"{path}: must be a mapping")
    for key, each in (value or {}).items():
        if each is not None and not is_table(each):
            raise CannotEdit(f"{path}.{key}: must be a mapping")


def _check_texts(path: str, value: Any) -> None:
    if value is not None and not is_table(value):
        raise CannotEdit(f"{path}: must be a mapping")
    for key, each in (value or {}).items():
        if is_table(each) or is_list(each):
            raise CannotEdit(f"{path}.{key}: must be text")
