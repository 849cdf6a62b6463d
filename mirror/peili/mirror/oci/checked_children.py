"""What a repository has for sure, because its registry took a manifest that refers to it. No I/O.

A registry looks only for what the media type of the manifest provides. So nothing else in the document counts here. The
registry may also read the document in another way: in Go, names are the same if they differ only in case, and the last
one counts. So a document that can be read in two ways refers to nothing.
"""

from __future__ import annotations

from typing import Any

from peili.mirror.oci.children import Children
from peili.mirror.oci.documents import digest_in, list_of, read_object, table_of, text_in
from peili.mirror.oci.references import DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST, Digest

_MEANINGFUL = ("schemaVersion", "mediaType", "config", "layers", "manifests", "digest", "size", "urls")
_SPELLINGS = {each.casefold(): each for each in _MEANINGFUL}
_KEPT_ELSEWHERE = ("foreign", "nondistributable")  # media types of layers with these words


def checked_children_of(data: bytes) -> Children:
    """Return what the repository has, because a registry took the manifest or the index in `data`.

    Of a manifest, these are the configuration and the layers. Of an index, these are its manifests. What has ``urls``,
    or is a layer that registries do not distribute, is left out: registries need not have it. Manifests of schema 1 and
    other documents refer to nothing.

    Raises:
        ValueError: `data` is malformed, or can be read in two ways.
    """
    document = read_object(data.decode(), _unambiguous)
    match text_in(document, "mediaType"):
        case media_type if media_type in {OCI_MANIFEST, DOCKER_MANIFEST}:
            is_index = False
        case media_type if media_type in {OCI_INDEX, DOCKER_LIST}:
            is_index = True
        case "":
            is_index = "manifests" in document
            if is_index and ("config" in document or "layers" in document):
                raise ValueError("the document is a manifest and an index")
        case _:
            return Children()
    if is_index:
        return Children(manifests=_digests(document.get("manifests", [])))
    config = [document["config"]] if document.get("config") else []
    return Children(blobs=_digests([*config, *list_of(document.get("layers", []))]))


def _unambiguous(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        raise ValueError("the manifest has the same name twice")
    for name in table:
        if _SPELLINGS.get(name.casefold(), name) != name:
            raise ValueError(f"the manifest has {name!r}, which some readers take for another name")
    if not isinstance(table.get("mediaType") or "", str):
        raise ValueError("the manifest has a media type that is no text")  # noqa: TRY004 - the input is wrong
    return table


def _digests(descriptors: object) -> tuple[Digest, ...]:
    tables = [table_of(each) for each in list_of(descriptors)]
    kept = [each for each in tables if not each.get("urls") and not _is_kept_elsewhere(each)]
    return tuple(dict.fromkeys(digest_in(each) for each in kept))


def _is_kept_elsewhere(descriptor: dict[str, Any]) -> bool:
    return any(each in text_in(descriptor, "mediaType") for each in _KEPT_ELSEWHERE)
