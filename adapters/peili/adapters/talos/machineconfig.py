"""What a Talos machine configuration says about mirrors of registries; reads, and changes nothing.

Two forms: documents of the kind ``RegistryMirrorConfig`` (Talos 1.12 and later), and, in the older ``v1alpha1``
document, ``machine.registries.mirrors``. Talos takes a registry's document where there are both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from peili.adapters.files.urls import is_plain
from peili.adapters.files.yaml_text import NotYaml, documents, dumped, is_list, is_table, plain

KIND = "RegistryMirrorConfig"
VERSION = "v1alpha1"
EVERY = "*"
"""Stands for the registries that have no entry of their own."""


class Unusable(ValueError):
    """The text is no machine configuration. The message is one line that says why."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """`override_path`: the URL is taken as it is, without ``/v2`` behind it, as Harbor needs it."""

    url: str
    override_path: bool = False


@dataclass(frozen=True, slots=True)
class Mirrors:
    """The mirrors of one registry, in the order in which they are asked.

    After them the registry itself is asked, but for `skip_fallback`.
    """

    registry: str
    endpoints: tuple[Endpoint, ...] = ()
    skip_fallback: bool = False


@dataclass(frozen=True, slots=True)
class MachineConfig:
    """Both forms, by registry; `documents` has the documents of the newer one, with their comments."""

    old: Mapping[str, Mirrors] = field(default_factory=dict[str, Mirrors])
    new: Mapping[str, Mirrors] = field(default_factory=dict[str, Mirrors])
    documents: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def mirrors(self) -> dict[str, Mirrors]:
        """What counts."""
        return {**self.old, **self.new}


def read(text: str) -> MachineConfig:
    """`text` is the configuration, or the resource ``machineconfig`` as `talosctl get -o yaml` prints it.

    Raises Unusable.
    """
    try:
        values, kept = plain(text), documents(text)
    except NotYaml as error:
        raise Unusable(f"can't be read as YAML: {error}") from error
    if len(values) == 1 and (spec := _resource(values[0])) is not None:
        return read(spec)
    if all(value is None for value in values):
        raise Unusable("it is empty; a machine configuration is wanted")
    old: dict[str, Mirrors] = {}
    new: dict[str, Mirrors] = {}
    originals: dict[str, Any] = {}
    for value, original in zip(values, kept, strict=True):
        if not _is_ours(value):
            old |= _old(value)
            continue
        mirrors = mirrors_of(value)
        if mirrors.registry in new:
            raise Unusable(f"two documents {KIND} for {mirrors.registry}; Talos takes one")
        new[mirrors.registry], originals[mirrors.registry] = mirrors, original
    return MachineConfig(old, new, originals)


def _is_ours(document: Any) -> bool:
    """Whether it is of the kind `KIND`. Raises Unusable for what is no document of a machine configuration."""
    if document is not None and not is_table(document):
        raise Unusable("each document has to be a mapping")
    if document and "$patch" in document:
        raise Unusable("this is a patch; the machine configuration that it is for is wanted")
    if document and not document.keys() & {"kind", "machine", "cluster"}:
        raise Unusable("a document has neither kind nor machine; a machine configuration is wanted")
    return document is not None and document.get("kind") == KIND


def mirrors_of(document: dict[str, Any]) -> Mirrors:
    """What a document of the kind `KIND` says. Raises Unusable."""
    where, registry = KIND, document.get("name")
    if document.get("apiVersion") != VERSION:
        raise Unusable(f"{where}: apiVersion {VERSION} is known, {document.get('apiVersion')!r} is not")
    if not isinstance(registry, str) or not registry:
        raise Unusable(f"{where}: a name is wanted")
    where = f"{where} {registry}"
    endpoints = tuple(
        Endpoint(_url(f"{where}: url", each.get("url")), _flag(f"{where}: overridePath", each.get("overridePath")))
        for each in (_table(f"{where}: endpoints", each) for each in _list(where, document.get("endpoints")))
    )
    return Mirrors(registry, endpoints, _flag(f"{where}: skipFallback", document.get("skipFallback")))


def _resource(value: Any) -> str | None:
    """The configuration inside of the resource that has it."""
    metadata: Any = value.get("metadata") if is_table(value) else None
    if not is_table(metadata) or metadata.get("type") != "MachineConfigs.config.talos.dev":
        return None
    spec: Any = value.get("spec")
    return spec if isinstance(spec, str) else dumped([spec])


def _old(document: dict[str, Any] | None) -> dict[str, Mirrors]:
    where, found = "machine.registries.mirrors", document or {}
    for key in where.split("."):
        found = _table(where, found.get(key))
    return {str(registry): _old_entry(f"{where}.{registry}", str(registry), said) for registry, said in found.items()}


def _old_entry(where: str, registry: str, said: Any) -> Mirrors:
    table = _table(where, said)
    override = _flag(f"{where}.overridePath", table.get("overridePath"))
    urls = [_url(f"{where}.endpoints", each) for each in _list(where, table.get("endpoints"))]
    skip = _flag(f"{where}.skipFallback", table.get("skipFallback"))
    return Mirrors(registry, tuple(Endpoint(url, override) for url in urls), skip)


def _table(where: str, value: Any) -> dict[str, Any]:
    if value is not None and not is_table(value):
        raise Unusable(f"{where}: a mapping is wanted")
    return value or {}


def _list(where: str, value: Any) -> list[Any]:
    if value is not None and not is_list(value):
        raise Unusable(f"{where}: endpoints has to be a list")
    return value or []


def _url(where: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise Unusable(f"{where}: a URL is wanted")
    if not is_plain(value):  # Talos refuses some such, and changes others
        raise Unusable(f"{where}: a plain URL is wanted, as https://mirror.example:5000/path, not {value!a}")
    return value


def _flag(where: str, value: Any) -> bool:
    if value is not None and not isinstance(value, bool):
        raise Unusable(f"{where}: true or false is wanted")
    return bool(value)
