"""The registry mirrors in a Talos machine configuration. This module only reads.

There are two forms: documents of the kind ``RegistryMirrorConfig`` (Talos 1.12 and later), and
``machine.registries.mirrors`` in the older ``v1alpha1`` document. If a registry has both, Talos uses the document.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from peili.adapters.files.urls import is_plain
from peili.adapters.files.yaml_text import NotYaml, dump, is_list, is_table, parse_all, parse_documents

KIND = "RegistryMirrorConfig"
VERSION = "v1alpha1"
WILDCARD = "*"
"""Stands for all registries without an entry."""

_EXPECTED = "a machine configuration is expected"


class InvalidMachineConfig(ValueError):
    """The text is not a machine configuration that peili can read or patch. The message is one line."""


@dataclass(frozen=True, slots=True)
class MirrorEndpoint:
    """One mirror of a registry.

    Attributes:
        url: Its URL.
        override_path: Whether the URL is used as it is; else ``/v2`` is appended. Harbor needs it.
    """

    url: str
    override_path: bool = False


@dataclass(frozen=True, slots=True)
class RegistryMirrors:
    """The mirrors of one registry.

    Attributes:
        registry: Its name, or `WILDCARD`.
        endpoints: The mirrors, in the order in which they are asked.
        skip_fallback: Whether the registry itself is not asked after the mirrors.
    """

    registry: str
    endpoints: tuple[MirrorEndpoint, ...] = ()
    skip_fallback: bool = False


@dataclass(frozen=True, slots=True)
class MachineConfig:
    """The mirrors in a machine configuration.

    Attributes:
        old: Those in the older form, by registry.
        new: Those in documents, by registry.
        documents: The documents themselves, with their comments, by registry.
    """

    old: Mapping[str, RegistryMirrors] = field(default_factory=dict[str, RegistryMirrors])
    new: Mapping[str, RegistryMirrors] = field(default_factory=dict[str, RegistryMirrors])
    documents: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def mirrors(self) -> dict[str, RegistryMirrors]:
        """The mirrors that Talos uses, by registry."""
        return {**self.old, **self.new}


def parse_config(text: str) -> MachineConfig:
    """Parse a machine configuration.

    Args:
        text: The configuration, or the resource ``machineconfig`` as `talosctl get -o yaml` prints it.

    Raises:
        InvalidMachineConfig: The text is not a machine configuration.
    """
    try:
        values, with_comments = parse_all(text), parse_documents(text)
    except NotYaml as error:
        raise InvalidMachineConfig(f"can't be read as YAML: {error}") from error
    if len(values) == 1 and (spec := _spec_of_resource(values[0])) is not None:
        return parse_config(spec)
    if all(value is None for value in values):
        raise InvalidMachineConfig(f"it is empty; {_EXPECTED}")
    old: dict[str, RegistryMirrors] = {}
    new: dict[str, RegistryMirrors] = {}
    originals: dict[str, Any] = {}
    for value, original in zip(values, with_comments, strict=True):
        if not _is_mirror_document(value):
            old |= _parse_old_form(value)
            continue
        mirrors = parse_document(value)
        if mirrors.registry in new:
            raise InvalidMachineConfig(f"two documents {KIND} for {mirrors.registry}; Talos allows one")
        new[mirrors.registry], originals[mirrors.registry] = mirrors, original
    return MachineConfig(old, new, originals)


def _is_mirror_document(document: Any) -> bool:
    """Return whether `document` is of the kind `KIND`. Raises InvalidMachineConfig if no configuration can have it."""
    if document is not None and not is_table(document):
        raise InvalidMachineConfig("each document must be a mapping")
    if document and "$patch" in document:
        raise InvalidMachineConfig(f"this is a patch; {_EXPECTED}")
    if document and not document.keys() & {"kind", "machine", "cluster"}:
        raise InvalidMachineConfig(f"a document has neither kind nor machine; {_EXPECTED}")
    return document is not None and document.get("kind") == KIND


def parse_document(document: dict[str, Any]) -> RegistryMirrors:
    """Parse a document of the kind `KIND`. Raises InvalidMachineConfig."""
    path, registry = KIND, document.get("name")
    if document.get("apiVersion") != VERSION:
        raise InvalidMachineConfig(f"{path}: apiVersion must be {VERSION}, not {document.get('apiVersion')!r}")
    if not isinstance(registry, str) or not registry:
        raise InvalidMachineConfig(f"{path}: name is missing")
    path = f"{path} {registry}"
    endpoints = tuple(
        MirrorEndpoint(
            _url(f"{path}: url", each.get("url")), _boolean(f"{path}: overridePath", each.get("overridePath"))
        )
        for each in (_table(f"{path}: endpoints", each) for each in _list(path, document.get("endpoints")))
    )
    return RegistryMirrors(registry, endpoints, _boolean(f"{path}: skipFallback", document.get("skipFallback")))


def _spec_of_resource(value: Any) -> str | None:
    """Return the configuration in a resource; None if `value` is not such a resource."""
    metadata: Any = value.get("metadata") if is_table(value) else None
    if not is_table(metadata) or metadata.get("type") != "MachineConfigs.config.talos.dev":
        return None
    spec: Any = value.get("spec")
    return spec if isinstance(spec, str) else dump([spec])


def _parse_old_form(document: dict[str, Any] | None) -> dict[str, RegistryMirrors]:
    path, found = "machine.registries.mirrors", document or {}
    for key in path.split("."):
        found = _table(path, found.get(key))
    return {str(registry): _parse_old_entry(path, str(registry), entry) for registry, entry in found.items()}


def _parse_old_entry(path: str, registry: str, entry: Any) -> RegistryMirrors:
    path = f"{path}.{registry}"
    table = _table(path, entry)
    override = _boolean(f"{path}.overridePath", table.get("overridePath"))
    urls = [_url(f"{path}.endpoints", each) for each in _list(path, table.get("endpoints"))]
    skip = _boolean(f"{path}.skipFallback", table.get("skipFallback"))
    return RegistryMirrors(registry, tuple(MirrorEndpoint(url, override) for url in urls), skip)


def _table(path: str, value: Any) -> dict[str, Any]:
    if value is not None and not is_table(value):
        raise InvalidMachineConfig(f"{path}: must be a mapping")
    return value or {}


def _list(path: str, value: Any) -> list[Any]:
    if value is not None and not is_list(value):
        raise InvalidMachineConfig(f"{path}: endpoints must be a list")
    return value or []


def _url(path: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise InvalidMachineConfig(f"{path}: must be a URL")
    if not is_plain(value):  # Talos refuses some of the others, and changes some
        raise InvalidMachineConfig(f"{path}: must be a plain URL, as https://mirror.example:5000/path, not {value!a}")
    return value


def _boolean(path: str, value: Any) -> bool:
    if value is not None and not isinstance(value, bool):
        raise InvalidMachineConfig(f"{path}: must be true or false")
    return bool(value)
