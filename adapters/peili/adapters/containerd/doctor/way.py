"""Proves the way by a request: what containerd would ask of the mirror, for an image that is really here."""

from __future__ import annotations

from collections.abc import Sequence

import httpx

from peili.adapters.containerd.doctor.doors import TIMEOUT
from peili.adapters.containerd.doctor.findings import Finding, fail, ok
from peili.adapters.containerd.hosts_toml.model import DEFAULT, RegistryHost
from peili.adapters.containerd.hosts_toml.status import RegistryStatus
from peili.mirror import Descriptor, NotFound, Reference, Selection
from peili.mirror.oci.media_types import DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST
from peili.stores.containerd.api import ContainerdApi
from peili.stores.containerd.listing import list_images

_ABOUT = "request"
_ACCEPT = ", ".join((OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST))


async def images_here(
    api: ContainerdApi, namespaces: Sequence[str], selection: Selection
) -> list[tuple[Reference, Descriptor]]:
    """Images whose manifest is in containerd's store and that the mirror is for. Raises StoreUnavailable."""
    names = namespaces or await api.namespaces()
    here: list[tuple[Reference, Descriptor]] = []
    for reference, tagged in sorted((await list_images(api, names)).items()):
        if not selection.allows(reference.registry, reference.repository, reference.tag):
            continue
        for namespace in names:
            try:
                await api.info(namespace, tagged.target.digest)
            except NotFound:
                continue
            here.append((reference, tagged.target))
            break
    return here


async def proved(
    http: httpx.AsyncClient, mirror: str, shown: Sequence[RegistryStatus], here: Sequence[tuple[Reference, Descriptor]]
) -> Finding:
    """The answer to what containerd asks of the first host of a registry's hosts.toml, where that is the mirror."""
    for reference, target in here:
        first = _first(shown, reference.registry)
        if first is not None and first.leads_to(mirror):
            return await _ask_for(http, mirror, reference, target)
    return await _ask_api(http, mirror, "containerd has no image of a registry that leads here" if here else _EMPTY)


_EMPTY = "containerd has no image that this mirror is for"


def _first(shown: Sequence[RegistryStatus], registry: str) -> RegistryHost | None:
    """Whom containerd asks first for `registry`."""
    in_force = {each.registry: each for each in reversed(shown) if each.hosts}
    found = in_force.get(registry) or in_force.get(DEFAULT)
    return found.hosts[0] if found is not None else None


async def _ask_for(http: httpx.AsyncClient, mirror: str, reference: Reference, target: Descriptor) -> Finding:
    path = f"/v2/{reference.repository}/manifests/{target.digest}"
    try:
        response = await http.head(f"{mirror}{path}", params={"ns": reference.registry}, headers={"Accept": _ACCEPT})
    except httpx.HTTPError as error:
        return _silent(mirror, error)
    digest = response.headers.get("Docker-Content-Digest")
    if response.status_code != 200:
        what = f"{reference} is in containerd, but {mirror} answers {response.status_code} for {path}"
        return fail(_ABOUT, what, "see that store.address and store.namespaces are this containerd's")
    if digest != target.digest:
        return fail(_ABOUT, f"{mirror} answers with digest {digest} for {target.digest}", "report it: that is a bug")
    return ok(_ABOUT, f"{mirror} answers as containerd wants it for {reference} ({target.digest})")


async def _ask_api(http: httpx.AsyncClient, mirror: str, why: str) -> Finding:
    try:
        response = await http.get(f"{mirror}/v2/")
    except httpx.HTTPError as error:
        return _silent(mirror, error)
    if response.status_code != 200:
        return fail(_ABOUT, f"{mirror}/v2/ answers {response.status_code}", "see who listens there")
    return ok(_ABOUT, f"{why}, so only {mirror}/v2/ was asked, which answers")


def _silent(mirror: str, error: httpx.HTTPError) -> Finding:
    why = f"no answer in {TIMEOUT:g} seconds" if isinstance(error, httpx.TimeoutException) else str(error)
    return fail(_ABOUT, f"{mirror}: {why or type(error).__name__}", "start peili, or see what it logs")
