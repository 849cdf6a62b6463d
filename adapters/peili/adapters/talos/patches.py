"""Patches of a Talos machine configuration that put peili before the other mirrors, or remove it again.

The text of a patch is for `talosctl patch machineconfig --patch @FILE`. Nothing is applied here.

When Talos merges a patch, it appends the patch's list to the existing list. A patch therefore deletes an existing
document and adds the complete new one, which Talos 1.12 and later accept in one patch. This makes a patch valid only
for the configuration that it was written for.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from peili.adapters.files.urls import check_mirror_url, same_door
from peili.adapters.files.yaml_text import dump, parse_all
from peili.adapters.talos.machine_config import (
    KIND,
    VERSION,
    WILDCARD,
    InvalidMachineConfig,
    MachineConfig,
    MirrorEndpoint,
    RegistryMirrors,
    parse_document,
)
from peili.mirror import check_registries


@dataclass(frozen=True, slots=True)
class MachineConfigPatch:
    """A patch of a machine configuration.

    Attributes:
        text: The patch; empty if there is nothing to change.
        mirrors: The resulting mirrors of each registry that the patch changes.
    """

    text: str
    mirrors: tuple[RegistryMirrors, ...]


def patch_to_apply(config: MachineConfig, url: str, registries: Sequence[str] = ()) -> MachineConfigPatch:
    """Write a patch that makes peili the first mirror. The other mirrors follow in their order.

    ``skipFallback`` keeps its value. If it is not set, Talos asks the registry for what peili does not have.

    Args:
        config: The configuration.
        url: The URL at which the machine's containerd reaches the local door.
        registries: The registries to change; by default `WILDCARD`, and each registry with mirrors, because `WILDCARD`
            does not apply to those.

    Raises:
        ConfigError: The URL or a registry is wrong.
        InvalidMachineConfig: No such patch can be written.
    """
    check_arguments(url, registries)
    changed = [
        replace(
            mirrors, endpoints=(MirrorEndpoint(url), *(each for each in mirrors.endpoints if not is_door(each, url)))
        )
        for mirrors in (_mirrors_of(config, name) for name in registries or [WILDCARD, *config.mirrors])
        if not mirrors.endpoints or not is_door(mirrors.endpoints[0], url)
    ]
    return _make_patch(config, url, changed)


def patch_to_remove(config: MachineConfig, url: str, registries: Sequence[str] = ()) -> MachineConfigPatch:
    """Write a patch that removes peili from the mirrors.

    Args:
        config: The configuration.
        url: The URL of the local door.
        registries: The registries to change; by default all.

    Raises:
        ConfigError: The URL or a registry is wrong.
        InvalidMachineConfig: No such patch can be written.
    """
    check_arguments(url, registries)
    changed = [
        replace(mirrors, endpoints=tuple(each for each in mirrors.endpoints if not is_door(each, url)))
        for mirrors in (_mirrors_of(config, name) for name in registries or config.mirrors)
        if any(is_door(each, url) for each in mirrors.endpoints)
    ]
    return _make_patch(config, url, changed)


def check_arguments(url: str, registries: Sequence[str]) -> None:
    """Raise ConfigError if `url` is not a mirror's URL, or one of `registries` is not a registry."""
    check_mirror_url(url)
    check_registries(registry for registry in registries if registry != WILDCARD)


def is_door(endpoint: MirrorEndpoint, url: str) -> bool:
    """Return whether `endpoint` is the local door at `url`."""
    return same_door(endpoint.url, url) and not endpoint.override_path


def merge_patch(config: MachineConfig, patch: str) -> dict[str, RegistryMirrors]:
    """Return the mirrors, by registry, after Talos has merged `patch` into `config`.

    Talos appends lists and replaces all other values.
    """
    new = dict(config.new)
    for document in (cast("dict[str, Any]", each) for each in parse_all(patch)):
        name = document["name"]
        if document.pop("$patch", None) == "delete":
            del new[name]
            continue
        added, existing = parse_document(document), new.get(name, RegistryMirrors(name))
        skip = added.skip_fallback if "skipFallback" in document else existing.skip_fallback
        new[name] = RegistryMirrors(name, existing.endpoints + added.endpoints, skip)
    return {**config.old, **new}


def _mirrors_of(config: MachineConfig, registry: str) -> RegistryMirrors:
    return config.mirrors.get(registry, RegistryMirrors(registry))


def _make_patch(config: MachineConfig, url: str, mirrors: Iterable[RegistryMirrors]) -> MachineConfigPatch:
    changed = tuple(dict.fromkeys(mirrors))
    documents: list[Any] = []
    for each in changed:
        head = {"apiVersion": VERSION, "kind": KIND, "name": each.registry}
        if each.registry in config.new:
            documents.append({**head, "$patch": "delete"})
        if each != config.old.get(each.registry, RegistryMirrors(each.registry)):
            original = config.documents.get(each.registry)
            documents.append(
                _new_document(head, each)
                if original is None
                else _changed_document(original, config.new[each.registry], url, each)
            )
    text = dump(documents) if documents else ""
    expected = {**config.mirrors, **{each.registry: each for each in changed}}
    result = merge_patch(config, text)
    if any(result.get(name, RegistryMirrors(name)) != each for name, each in expected.items()):
        raise InvalidMachineConfig("no patch has this result, because of an anchor or a tag in the configuration")
    return MachineConfigPatch(text, changed)


def _new_document(head: dict[str, Any], mirrors: RegistryMirrors) -> dict[str, Any]:
    endpoints = [_dump_endpoint(each) for each in mirrors.endpoints]
    fallback = {"skipFallback": True} if mirrors.skip_fallback else {}
    return {**head, **({"endpoints": endpoints} if endpoints else {}), **fallback}


def _changed_document(original: Any, old: RegistryMirrors, url: str, new: RegistryMirrors) -> Any:
    """Return a copy of `original`, which contains `old`, that contains `new`. All other keys and comments stay."""
    document = copy.deepcopy(original)
    if not document.get("endpoints"):
        document.pop("endpoints", None)
        document.insert(list(document).index("name") + 1, "endpoints", [])
    endpoints = document["endpoints"]
    for index, endpoint in reversed([*enumerate(old.endpoints)]):
        if is_door(endpoint, url):
            del endpoints[index]
    if new.endpoints and is_door(new.endpoints[0], url):
        endpoints.insert(0, _dump_endpoint(new.endpoints[0]))
    return document


def _dump_endpoint(endpoint: MirrorEndpoint) -> dict[str, Any]:
    return {"url": endpoint.url, **({"overridePath": True} if endpoint.override_path else {})}
