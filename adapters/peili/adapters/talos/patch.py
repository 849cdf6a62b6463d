"""Patches of a machine configuration that put peili before the mirrors of registries, or take it away again.

Text for `talosctl patch machineconfig --patch @FILE`; nothing is applied here.

When Talos merges a patch it appends the patch's list to the one that is there. So a document that exists is deleted
first and then given whole, which Talos 1.12 and later take in one patch. A patch is therefore good for the
configuration that it was made from, and for no other.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from peili.adapters.files.urls import same_door
from peili.adapters.files.yaml_text import dumped, plain
from peili.adapters.talos.machineconfig import (
    EVERY,
    KIND,
    VERSION,
    Endpoint,
    MachineConfig,
    Mirrors,
    Unusable,
    mirrors_of,
)
from peili.mirror import ConfigError, base_url, check_registries


@dataclass(frozen=True, slots=True)
class Patch:
    """`text` is empty where there is nothing to change; `mirrors` is what counts for each registry it changes."""

    text: str
    mirrors: tuple[Mirrors, ...]


def putting_first(config: MachineConfig, url: str, registries: Sequence[str] = ()) -> Patch:
    """Have `registries` asked at `url` first and then as before. Raises ConfigError.

    Without `registries` all are: `EVERY`, and each that has mirrors of its own, for which `EVERY` does not count.
    `skipFallback` stays what it is: where it is not set, Talos goes to the registry for what peili has not.
    """
    check(url, registries)
    wanted = [
        replace(mirrors, endpoints=(Endpoint(url), *(each for each in mirrors.endpoints if not same(each, url))))
        for mirrors in (_of(config, name) for name in registries or [EVERY, *config.mirrors])
        if not mirrors.endpoints or not same(mirrors.endpoints[0], url)
    ]
    return _patch(config, url, wanted)


def taking_away(config: MachineConfig, url: str, registries: Sequence[str] = ()) -> Patch:
    """Have `registries`, by default all, no longer asked at `url`. Raises ConfigError."""
    check(url, registries)
    wanted = [
        replace(mirrors, endpoints=tuple(each for each in mirrors.endpoints if not same(each, url)))
        for mirrors in (_of(config, name) for name in registries or config.mirrors)
        if any(same(each, url) for each in mirrors.endpoints)
    ]
    return _patch(config, url, wanted)


def check(url: str, registries: Sequence[str]) -> None:
    """Raises ConfigError where `url` or one of `registries` is none."""
    try:
        base_url(url)
    except ValueError as error:
        raise ConfigError("mirror", "http://HOST:PORT, as the machine's containerd reaches the local door") from error
    check_registries(registry for registry in registries if registry != EVERY)


def _of(config: MachineConfig, registry: str) -> Mirrors:
    return config.mirrors.get(registry, Mirrors(registry))


def same(endpoint: Endpoint, url: str) -> bool:
    """Whether `endpoint` is the door at `url`."""
    return same_door(endpoint.url, url) and not endpoint.override_path


def merged(config: MachineConfig, patch: str) -> dict[str, Mirrors]:
    """What counts once Talos has merged `patch` into `config`: lists are appended, the rest is replaced."""
    new = dict(config.new)
    for document in (cast("dict[str, Any]", each) for each in plain(patch)):
        name = document["name"]
        if document.pop("$patch", None) == "delete":
            del new[name]
            continue
        said, had = mirrors_of(document), new.get(name, Mirrors(name))
        skip = said.skip_fallback if "skipFallback" in document else had.skip_fallback
        new[name] = Mirrors(name, had.endpoints + said.endpoints, skip)
    return {**config.old, **new}


def _patch(config: MachineConfig, url: str, wanted: Iterable[Mirrors]) -> Patch:
    changed = tuple(dict.fromkeys(wanted))
    documents: list[Any] = []
    for mirrors in changed:
        head = {"apiVersion": VERSION, "kind": KIND, "name": mirrors.registry}
        if mirrors.registry in config.new:
            documents.append({**head, "$patch": "delete"})
        if mirrors != config.old.get(mirrors.registry, Mirrors(mirrors.registry)):
            original = config.documents.get(mirrors.registry)
            documents.append(
                _fresh(head, mirrors)
                if original is None
                else _changed(original, config.new[mirrors.registry], url, mirrors)
            )
    text = dumped(documents) if documents else ""
    expected = {**config.mirrors, **{each.registry: each for each in changed}}
    found = merged(config, text)
    if any(found.get(name, Mirrors(name)) != mirrors for name, mirrors in expected.items()):
        raise Unusable("no patch that says it could be written; an anchor or a tag is in the way")
    return Patch(text, changed)


def _fresh(head: dict[str, Any], mirrors: Mirrors) -> dict[str, Any]:
    endpoints = [_endpoint(each) for each in mirrors.endpoints]
    fallback = {"skipFallback": True} if mirrors.skip_fallback else {}
    return {**head, **({"endpoints": endpoints} if endpoints else {}), **fallback}


def _changed(original: Any, had: Mirrors, url: str, mirrors: Mirrors) -> Any:
    """The document of `mirrors`; all that `original`, which says `had`, says besides stays, with its comments."""
    document = copy.deepcopy(original)
    if not document.get("endpoints"):
        document.pop("endpoints", None)
        document.insert(list(document).index("name") + 1, "endpoints", [])
    endpoints = document["endpoints"]
    for place, endpoint in reversed([*enumerate(had.endpoints)]):
        if same(endpoint, url):
            del endpoints[place]
    if mirrors.endpoints and same(mirrors.endpoints[0], url):
        endpoints.insert(0, _endpoint(mirrors.endpoints[0]))
    return document


def _endpoint(endpoint: Endpoint) -> dict[str, Any]:
    return {"url": endpoint.url, **({"overridePath": True} if endpoint.override_path else {})}
